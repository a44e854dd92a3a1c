"""Command lines of the local platform's processes. Secrets are passed as files. Pure."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from nvcf_agent.backends.allowed import allow_list
from nvcf_agent.backends.users import parse_range
from nvcf_agent.errors import AgentError
from nvcf_agent.state.machine_inventory import parse_gpus, parse_size
from nvcf_broker.server import LocalBroker
from nvcf_cli.errors import UsageError
from nvcf_cli.local.progress import LONGEST_START_SECONDS
from nvcf_cli.local.state import Installation
from nvcf_cli.local.supervisor import ChildSpec
from nvcf_gateway.errors import SetupError
from nvcf_gateway.quotas.limits import parse_limits

LOCAL_CLUSTER = "local"
SIMULATED_GPU = "SIM"
AGENT_GRACE_SECONDS = 20.0
# The agent first lets its workers finish, so it needs longer than they do.
_AGENT_EXTRA_SECONDS = 5.0


UNPROTECTED = (
    "functions run as your user and can read what you can, the platform's keys too: deploy only code that "
    "you trust, or run nvcf up as root (docs/operate/security.md)"
)


def isolation_flags(folders: Sequence[Path], pythons: Sequence[Path], uids: str | None) -> tuple[str, ...]:
    """Return the agent's options about what functions may do. Raises `UsageError`."""
    folders = [each.expanduser().absolute() for each in folders]
    pythons = [each.expanduser().absolute() for each in pythons]
    try:
        allow_list(pythons, folders, ())
        parse_range(uids)
    except AgentError as error:
        raise UsageError(str(error)) from error
    flags = [flag for each in folders for flag in ("--allow-folder", str(each))]
    flags += [flag for each in pythons for flag in ("--allow-python", str(each))]
    return (*flags, *(("--instance-uid-range", uids) if uids is not None else ()))


def checked_quotas(texts: Sequence[str]) -> tuple[str, ...]:
    """Return settings `[ACCOUNT:]QUOTA=N` as they are. Raises `UsageError` for one that says nothing."""
    try:
        parse_limits(texts, data_budget=0)
    except SetupError as error:
        raise UsageError(str(error)) from error
    return tuple(texts)


class Durability(StrEnum):
    """What the local platform's disk has before somebody is told that it is kept."""

    PROMISES = "promises"
    """What was promised; the gateway waits for the disk."""
    ALWAYS = "always"
    """Every message; the broker waits for the disk."""
    INTERVAL = "interval"
    """What is older than two minutes."""


@dataclass(frozen=True)
class Addresses:
    """Where the parts of the platform listen; chosen once, so that restarted children keep them."""

    http: str
    grpc: str
    nats: str
    nats_credentials: Path | None
    callout_seed: Path | None
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Where each process serves its metrics, by its name; without one it serves none."""
    sessions: str | None = None
    """Where the gateway takes gRPC and WebSocket callers; without one it takes none."""
    control_credentials: Path | None = None
    """Of the control plane's own broker account; without one it shares that of tenants' data."""
    store: Path | None = None
    """The local broker's store, if the gateway waits for its disk."""
    system_credentials: Path | None = None

    def metrics_flags(self, child: str) -> list[str]:
        """Return the options that make a process serve its metrics."""
        return ["--metrics", self.metrics[child]] if child in self.metrics else []


@dataclass(frozen=True)
class ClusterPlan:
    """The clusters that this machine is divided into, all alike.

    `gpus` simulated GPUs called `gpu` and `cpu_slots` instances without one in each (None: the agent's
    default); `memory` (like 512M) and `cpus` limit every instance. `collector` is the program run beside
    instances whose telemetry needs one.
    """

    count: int = 1
    gpus: int = 0
    gpu: str = SIMULATED_GPU
    cpu_slots: int | None = None
    memory: str | None = None
    cpus: float | None = None
    collector: Path | None = None
    isolation: tuple[str, ...] = ()
    """Options of the agent about what functions may do, as they were given."""

    def names(self) -> list[str]:
        """Return `local`, or `local-1`, `local-2`, ..."""
        if self.count == 1:
            return [LOCAL_CLUSTER]
        return [f"{LOCAL_CLUSTER}-{number}" for number in range(1, self.count + 1)]

    def child(self, cluster: str) -> str:
        """Return the name of a cluster's agent among the platform's processes."""
        return "agent" if self.count == 1 else f"agent-{cluster}"

    def check(self) -> None:
        """Raise `UsageError` for what an agent would not take."""
        try:
            if self.gpus:
                parse_gpus(f"{self.gpu}={self.gpus}")
            parse_size(self.memory or "1M")
        except AgentError as error:
            raise UsageError(str(error)) from error
        if self.collector is not None and not os.access(self.collector, os.X_OK):
            raise UsageError(f"--collector {self.collector}: there is no such program")

    def flags(self) -> list[str]:
        """Return the agent's options for its cluster."""
        flags = ["--gpu", f"{self.gpu}={self.gpus}"] if self.gpus else []
        if self.cpu_slots is not None:
            flags += ["--cpu-slots", str(self.cpu_slots)]
        if self.collector is not None:
            flags += ["--collector", str(self.collector)]
        limits = [f"memory={self.memory}"] if self.memory is not None else []
        if self.cpus is not None:
            limits.append(f"cpus={self.cpus:g}")
        return [*flags, "--instance-type", ",".join(["process", *limits])] if limits else flags


def gateway_spec(
    installation: Installation, addresses: Addresses, log_level: str, quotas: Sequence[str] = ()
) -> ChildSpec:
    """Return how to run the gateway. `quotas` are limits of accounts, as its option takes them."""
    command = [sys.executable, "-m", "nvcf_gateway", "--http", addresses.http, "--grpc", addresses.grpc]
    command += ["--nats", addresses.nats, "--signing-key", str(installation.signing_key)]
    command += ["--bootstrap-keys", str(installation.bootstrap_keys)]
    command += ["--sealing-keys", str(installation.sealing_keys)]
    command += ["--region", "local", "--regions", "local"]
    command += ["--sessions", addresses.sessions] if addresses.sessions is not None else []
    command += ["--store-folder", str(addresses.store)] if addresses.store is not None else []
    command += _both_credentials(addresses)
    if addresses.callout_seed is not None:
        command += ["--callout-seed", str(addresses.callout_seed)]
    if addresses.system_credentials is not None:
        command += ["--nats-system-credentials", str(addresses.system_credentials)]
    command += [part for each in quotas for part in ("--quota", each)]
    command += addresses.metrics_flags("gateway")
    command += ["--log-level", log_level.upper()]
    return ChildSpec("gateway", command, installation.log("gateway"))


def agent_spec(
    installation: Installation,
    addresses: Addresses,
    plan: ClusterPlan,
    cluster: str,
    cluster_id: str,
    log_level: str,
) -> ChildSpec:
    """Return how to run the agent of the cluster of that name and id."""
    name = plan.child(cluster)
    command = [sys.executable, "-m", "nvcf_agent", "--icms", f"http://{addresses.http}"]
    command += ["--nats", addresses.nats, "--cluster-id", cluster_id]
    command += ["--key-file", str(installation.agent_key(cluster))]
    command += ["--data", str(installation.cluster(cluster))]
    command += ["--grace", str(AGENT_GRACE_SECONDS), *plan.flags()]
    command += ["--private-folder", str(installation.data), *plan.isolation]
    command += ["--telemetry-secrets", str(installation.telemetry_secrets)]
    # Platform and functions are one user's: what that user sets for the one is meant for the others too.
    command += ["--worker-telemetry", *addresses.metrics_flags(name)]
    command += ["--worker-metrics"] if addresses.metrics else []
    command += ["--log-level", log_level.lower()]
    grace = AGENT_GRACE_SECONDS + _AGENT_EXTRA_SECONDS
    return ChildSpec(name, command, installation.log(name), grace=grace)


def autoscaler_spec(installation: Installation, addresses: Addresses, log_level: str) -> ChildSpec:
    """Return how to run the autoscaler."""
    command = [sys.executable, "-m", "nvcf_autoscaler", "--nats", addresses.nats]
    command += _both_credentials(addresses)
    command += addresses.metrics_flags("autoscaler")
    command += ["--log-level", log_level.upper()]
    return ChildSpec("autoscaler", command, installation.log("autoscaler"))


def _both_credentials(addresses: Addresses) -> list[str]:
    data, control = addresses.nats_credentials, addresses.control_credentials
    flags = ["--nats-credentials", str(data)] if data is not None else []
    return flags + (["--nats-control-credentials", str(control)] if control is not None else [])


def broker_spec(broker: LocalBroker) -> ChildSpec:
    """Return how to run the local broker, which is prepared already."""

    async def wait_ready(_line: dict[str, Any]) -> None:
        # A large store takes long to read; the supervisor sees whether that makes progress.
        await broker.wait_ready(LONGEST_START_SECONDS)

    # SIGTERM lets it close its files when `nvcf up` is killed; it has nobody else to wait for.
    return ChildSpec(
        "broker",
        broker.command,
        broker.files.log,
        ready_line=False,
        wait_ready=wait_ready,
        death_signal=signal.SIGTERM,
    )
