"""The containers and volumes of an instance's pod. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.kubernetes.pods import variables
from nvcf_agent.kubernetes.pods.launch import ContainerLaunch, repository_of
from nvcf_agent.kubernetes.pods.names import secret_name
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_proto import environment as names
from nvcf_proto.leases import LEASE_GRACE_SECONDS
from nvcf_proto.settings import DRAINED_PATH, HEALTH_LIVE_PATH, HEALTH_READY_PATH

Json = dict[str, Any]

INFERENCE = "inference"
TASK = "task"
UTILS = "utils"
INIT = "init"
COLLECTOR = "byoo-otel-collector"
CONFIG = "/config"
ARTIFACTS = "/config/artifacts"
_COLLECTOR_FILE = "collector.yaml"
_STARTUP_SECONDS = 60
_TASK_STARTUP_SECONDS = 300
_LEASE_STARTUP_SECONDS = 240
_GONE_FAILURES = 15
"""Checks in a row, 2 s apart, that find no worker: a busy one answers late, and keeps its requests."""


@dataclass(frozen=True)
class Parts:
    """Everything that containers are made from. `gpu_resource` is the name of the node's resource.

    Images of another make, such as NVIDIA's, are run as NVIDIA's agent runs them.
    """

    spec: InstanceSpec
    launch: ContainerLaunch
    settings: PodSettings
    gpu_resource: str
    collector_image: str | None

    @property
    def port(self) -> int:
        """The worker's health port."""
        return variables.health_port(self.launch)

    def is_own(self, image: str) -> bool:
        """Return whether an image is this project's worker, of whatever version."""
        return repository_of(image) == repository_of(self.settings.worker_image)

    @property
    def init_image(self) -> str | None:
        """Image of the init container; None without one."""
        given = self.launch.init_image
        if given is not None and not self.is_own(given):
            return given
        return (given or self.settings.worker_image) if self.launch.has_artifacts else None

    @property
    def utils_image(self) -> str | None:
        """Image of the worker's own container; None in library mode."""
        return None if self.launch.is_library else self.launch.utils_image or self.settings.worker_image

    def env_from(self, what: str) -> list[Json]:
        """Return `envFrom` of the instance's Secret for one container."""
        return [{"secretRef": {"name": secret_name(self.spec.instance_id, what)}}]

    def images(self) -> list[str]:
        """Return the images beside the function's."""
        return [image for image in (self.utils_image, self.init_image, self.collector_image) if image]


def main(parts: Parts) -> Json:
    """Return the container of the function or task itself."""
    launch, settings = parts.launch, parts.settings
    container = _container(TASK if launch.is_task else INFERENCE, launch.image, settings) | {
        "envFrom": parts.env_from("function"),
        "resources": _resources(parts),
        "volumeMounts": [
            *_MODELS,
            *_data(parts),
            _mount("instance-data", variables.INSTANCE_DATA, read_only=True),
            _mount("dshm", "/dev/shm"),  # noqa: S108 - a mount in the function's container
            _mount("secret-data", variables.SECRETS, read_only=True),
        ],
        "securityContext": _restricted(add=["NET_BIND_SERVICE"]),
    }
    if launch.arguments:
        container["args"] = list(launch.arguments)
    if settings.run_as_non_root:
        container["securityContext"]["runAsNonRoot"] = True
    if launch.is_library:
        container["volumeMounts"].append(_mount("config-data", variables.SHARED))
    if launch.is_task:
        return container | _lease_probes(parts)
    if launch.is_library:
        container |= _probes(parts.port, settings.ready_seconds)
    elif parts.utils_image is not None and parts.is_own(parts.utils_image):
        # Its worker finishes its requests first. If that is gone, the hook fails and SIGTERM comes at once.
        container["lifecycle"] = {"preStop": {"httpGet": {"path": DRAINED_PATH, "port": parts.port}}}
        # While a pod ends, its node goes on with readiness checks and nothing else: so the agent sees that
        # the worker has left, and that nothing is left to wait for.
        container["readinessProbe"] = _probe(HEALTH_LIVE_PATH, parts.port, 2, _GONE_FAILURES)
    return container


def utils(parts: Parts, image: str) -> Json:
    """Return the worker's own container: this project's, or one of another make that the message names."""
    container = _container(UTILS, image, parts.settings) | {
        "envFrom": parts.env_from("worker"),
        "resources": parts.settings.sidecar.resources(),
        "volumeMounts": [
            *_MODELS,
            _mount("config-data", variables.SHARED),
            *_data(parts),
            _mount("instance-data", variables.INSTANCE_DATA),
            _mount("secret-data", variables.SECRETS, read_only=True),
        ],
        "securityContext": _of_worker(parts, image),
    }
    if not parts.launch.is_task:
        container |= _probes(parts.port, _STARTUP_SECONDS)
    elif parts.is_own(image):
        # Once it is ready it reports all progress: the end of the pod waits for that.
        probe = _probe(HEALTH_LIVE_PATH, parts.port, 1, _TASK_STARTUP_SECONDS)
        container |= {"args": ["task-companion"], "startupProbe": probe}
    if parts.is_own(image):
        container["volumeMounts"].append(_TMP)
    return container


def init(parts: Parts, image: str) -> Json:
    """Return the container that downloads models and resources, and ends."""
    container = _container(INIT, image, parts.settings) | {
        "resources": parts.settings.init.resources(),
        "volumeMounts": [
            *_MODELS,
            _mount("config-data", variables.SHARED),
        ],
        "securityContext": _of_worker(parts, image),
    }
    if not parts.is_own(image):
        return container | {"envFrom": parts.env_from("worker")}
    container["volumeMounts"] += [_mount("artifacts", ARTIFACTS, read_only=True), _TMP]
    return container | {"args": ["fetch", "--artifacts", f"{ARTIFACTS}/artifacts.json", "--to", CONFIG]}


def collector(parts: Parts, image: str) -> Json:
    """Return the collector of the account's telemetry. It starts before the others and ends after them."""
    placement = variables.PLACEMENT
    ports = (("otlp-grpc", placement.grpc_port), ("otlp-http", placement.http_port))
    return _container(COLLECTOR, image, parts.settings) | {
        "restartPolicy": "Always",
        "args": ["--config", f"/etc/otelcol/{_COLLECTOR_FILE}"],
        "ports": [{"name": name, "containerPort": port} for name, port in ports],
        "resources": parts.settings.collector.resources(),
        "volumeMounts": [
            _mount("collector-config", "/etc/otelcol", read_only=True),
            _mount("collector-secrets", placement.secrets, read_only=True),
            _mount("collector-queue", placement.storage),
        ],
        "securityContext": _own(),
    }


def volumes(parts: Parts, mounted: Sequence[Json]) -> list[Json]:
    """Return the volumes that these containers mount."""
    instance_id = parts.spec.instance_id
    special: dict[str, Json] = {
        "dshm": {"emptyDir": {"medium": "Memory"}},
        "secret-data": _secret(secret_name(instance_id, "secrets")),
        "artifacts": _secret(secret_name(instance_id, "artifacts")),
        "collector-config": {"configMap": {"name": secret_name(instance_id, "collector")}},
        "collector-secrets": _secret(secret_name(instance_id, "collector")),
    }
    names = dict.fromkeys(mount["name"] for container in mounted for mount in container["volumeMounts"])
    return [{"name": name, **special.get(name, {"emptyDir": {}})} for name in names]


def _secret(name: str) -> Json:
    # Containers have users of their own: each must be able to read it.
    return {"secret": {"secretName": name, "defaultMode": 0o444}}


def _container(name: str, image: str, settings: PodSettings) -> Json:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.pull_policy,
        # The last lines of a container that failed are then in the pod's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _lease_probes(parts: Parts) -> Json:
    """Return the probes of a task that may be run elsewhere once its worker hears nothing of the platform.

    Its worker exits then, and the node ends the task, whether or not an agent is there. Others have none.
    """
    lease = names.NVCT_LEASE_DURATION in parts.launch.message
    if not lease or parts.utils_image is None or not parts.is_own(parts.utils_image):
        return {}
    grace = {"terminationGracePeriodSeconds": int(LEASE_GRACE_SECONDS)}
    return {
        "startupProbe": _probe(HEALTH_LIVE_PATH, parts.port, 1, _LEASE_STARTUP_SECONDS) | grace,
        "livenessProbe": _probe(HEALTH_LIVE_PATH, parts.port, 5, 6) | grace,
    }


def _data(parts: Parts) -> list[Json]:
    """Return the mounts of what function or task shares with its worker."""
    if not parts.launch.is_task:
        return [_mount("inference-data", variables.INFERENCE_DATA)]
    # As a mount of its own the folder is there before the task starts, and all users can write to it.
    results = _mount("task-data", variables.TASK_RESULTS) | {"subPath": "results"}
    return [_mount("task-data", variables.TASK_DATA), results]


def _mount(volume: str, path: str, *, read_only: bool = False) -> Json:
    return {"name": volume, "mountPath": path, **({"readOnly": True} if read_only else {})}


_MODELS = [_mount("model-data", f"{CONFIG}/models"), _mount("model-data", f"{CONFIG}/resources")]
_TMP = _mount("tmp", "/tmp")  # noqa: S108


def _restricted(*, add: Sequence[str] = ()) -> Json:
    """Return what the level "restricted" asks of every container, except for its user."""
    capabilities = {"drop": ["ALL"], **({"add": list(add)} if add else {})}
    return {"allowPrivilegeEscalation": False, "capabilities": capabilities}


def _own() -> Json:
    return _restricted() | {"runAsNonRoot": True, "readOnlyRootFilesystem": True}


def _of_worker(parts: Parts, image: str) -> Json:
    """Return what a worker's image may do, this project's or one of another make."""
    others = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["NET_RAW"]}}
    return _own() if parts.is_own(image) else others


def _probes(port: int, startup_seconds: int) -> Json:
    """Return NVIDIA's probes of a worker. Readiness is asked more often, with the same tolerance of 20 s."""

    return {
        "startupProbe": _probe(HEALTH_LIVE_PATH, port, 1, startup_seconds),
        "readinessProbe": _probe(HEALTH_READY_PATH, port, 2, 10),
        "livenessProbe": _probe(HEALTH_LIVE_PATH, port, 10, 2),
    }


def _probe(path: str, port: int, period: int, failures: int) -> Json:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": min(period, 6),
    }


def _resources(parts: Parts) -> Json:
    found: dict[str, str] = {}
    gpus = parts.spec.order.requested_gpu_count
    if gpus:
        found[parts.gpu_resource] = str(gpus)
    limits = parts.spec.limits
    if limits.memory is not None:
        found["memory"] = str(limits.memory)
    if limits.cpus is not None:
        found["cpu"] = f"{round(limits.cpus * 1000)}m"
    return {"requests": found, "limits": dict(found)} if found else {}
