"""What an installation decides about its function pods."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NAMESPACE = "nvcf-backend"
GRACE_SECONDS = 120
READY_SECONDS = 7200
"""NVIDIA's limit for a function to become ready, 2 h."""
GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
PRIVATE_RANGES = (
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10",
    "fc00::/7", "fe80::/10",
)  # fmt: skip


@dataclass(frozen=True)
class Requests:
    """Processors and memory of a container beside the function's; the memory is also its limit."""

    cpu: str = "50m"
    memory: str = "256Mi"

    def resources(self) -> dict[str, dict[str, str]]:
        """Return the container's `resources`."""
        return {
            "requests": {"cpu": self.cpu, "memory": self.memory},
            "limits": {"memory": self.memory},
        }


@dataclass(frozen=True)
class Network:
    """Whom function pods may reach.

    `control_plane` and `api_server` are address ranges, `monitoring` and `control_plane_namespaces` labels
    of namespaces, `private` what is not the internet, the cluster's own ranges included. `api_access` is the
    flag AllowWorkloadKubernetesAPIAccess. `enabled`: without it there are no policies at all.
    """

    enabled: bool = True
    private: tuple[str, ...] = PRIVATE_RANGES
    control_plane: tuple[str, ...] = ()
    control_plane_namespaces: Mapping[str, str] = field(default_factory=dict)
    monitoring: Mapping[str, str] = field(default_factory=dict)
    api_server: tuple[str, ...] = ()
    api_access: bool = False


@dataclass(frozen=True)
class PodSettings:
    """Settings of all function pods of one cluster.

    `worker_image` is this project's worker: sidecar and init container where a message names no others.
    `pull_secrets` are Secrets of the namespace that every pod may pull images with. `variables` override
    those of the message (NVIDIA's functionEnvOverrides). With `run_as_non_root` a function's image must not
    run as root; then its pods meet the level "restricted", otherwise "baseline". `collector_host` is where
    containers find the collector of their telemetry.
    """

    worker_image: str
    namespace: str = NAMESPACE
    cluster_name: str = ""
    region: str = ""
    environment: str = "prod"
    collector_image: str = ""
    collector_host: str = "127.0.0.1"
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    tolerations: tuple[Mapping[str, Any], ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    sidecar: Requests = Requests()
    init: Requests = Requests("100m", "512Mi")
    collector: Requests = Requests("100m", "384Mi")
    run_as_non_root: bool = False
    grace: int = GRACE_SECONDS
    ready_seconds: int = READY_SECONDS
    network: Network = Network()
