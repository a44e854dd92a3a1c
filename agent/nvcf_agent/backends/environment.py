"""The environment of a worker process (protocol.md, section 5.1). Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nvcf_agent.state import order as orders
from nvcf_agent.state.inventory import Limits, Share
from nvcf_otel.byoo.plan import collector_environment
from nvcf_proto import environment as names
from nvcf_proto.icms.messages import CreationMessage, instance_id_of
from nvcf_proto.icms.names import Workload
from nvcf_proto.models import ProcessSource, TelemetryEndpoint, TelemetryType
from nvcf_proto.secrets import function_secrets_path, task_secrets_path

PROGRESS_FILE = "progress"
CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
# What an instance inherits from the agent. All other variables, above all credentials, are not passed on.
_INHERITED = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "NVCF_ROOT_CA_FILE",
)  # fmt: skip
_TELEMETRY_PREFIX = "OTEL_"
_OF_THE_AGENT = frozenset(("OTEL_SERVICE_NAME",))
# What a message brings for the cluster, and no function may read.
_OF_THE_CLUSTER = frozenset(
    ("CONTAINER_REGISTRIES_CREDENTIALS", "HELM_REGISTRIES_CREDENTIALS", "SIDECAR_REGISTRY_CREDENTIAL")
)


@dataclass(frozen=True)
class SecretFiles:
    """Files with secrets of an account's telemetry: those named in `given` are in `kept`, others in `local`.

    `local` is the operator's folder for the account, `kept` has what the account gave to the platform.
    """

    local: Path
    kept: Path | None = None
    given: frozenset[str] = frozenset()

    def path(self, name: str) -> Path:
        """Return the path of a file."""
        folder = self.kept if self.kept is not None and name in self.given else self.local
        return folder / name

    def read(self, name: str) -> str:
        """Return the text of a file. Raises OSError and UnicodeDecodeError."""
        return self.path(name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class SecretTexts:
    """Secrets of an account's telemetry by name, where the agent's files may be gone."""

    texts: Mapping[str, str] = field(repr=False)

    def read(self, name: str) -> str:
        """Return a secret. Raises OSError."""
        if name not in self.texts:
            raise OSError(f"there is no secret {name}")
        return self.texts[name]


@dataclass(frozen=True)
class CollectorOrder:
    """A collector that an instance needs, and its secrets."""

    endpoints: Mapping[TelemetryType, TelemetryEndpoint]
    secrets: SecretFiles | SecretTexts
    resource: Mapping[str, str]


@dataclass(frozen=True)
class WorkerTelemetry:
    """Telemetry of a worker.

    `metrics`: it serves metrics. `variables` are the operator's OTEL_ variables; a function's own ones win.
    They may hold credentials, which every function can then read. `collector` sends what the SDK cannot send
    by itself. `files` are certificates and keys that the variables name, for an instance that cannot read the
    agent's.
    """

    metrics: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    collector: CollectorOrder | None = None
    files: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, environ: Mapping[str, str], *, metrics: bool, passed_on: bool) -> "WorkerTelemetry":
        """Return the operator's settings; with `passed_on`, the agent's OTEL_ variables except its name."""
        own = {
            name: value
            for name, value in environ.items()
            if passed_on and name.startswith(_TELEMETRY_PREFIX) and name not in _OF_THE_AGENT
        }
        return cls(metrics, own)


NO_TELEMETRY = WorkerTelemetry()


@dataclass(frozen=True)
class InstanceOf:
    """An instance and the function version that it is of."""

    instance_id: str
    function_id: str
    version_id: str
    has_secret_service: bool = True
    """Whether its control plane hands out secrets."""
    is_task: bool = False
    """Function and version are the id of the task."""

    @property
    def secrets_path(self) -> str:
        """Path of its secrets."""
        if self.is_task:
            return task_secrets_path(self.function_id)
        return function_secrets_path(self.function_id, self.version_id)

    @classmethod
    def of(cls, instance_id: str, order: CreationMessage) -> "InstanceOf":
        """Return what a creation message says of an instance."""
        served = names.ESS_FQDN in orders.environment(order)
        is_task = order.workload is Workload.TASK
        return cls(instance_id, orders.function_id(order), orders.version_id(order), served, is_task)


@dataclass(frozen=True)
class InstanceSpec:
    """Everything a backend needs to run one instance: the `index`-th of its creation message `order`.

    `zone` is the cluster's name. `trace` is the traceparent of its start.
    """

    order: CreationMessage
    share: Share
    limits: Limits
    index: int = 0
    zone: str = ""
    trace: str | None = None
    telemetry: WorkerTelemetry = NO_TELEMETRY

    @property
    def instance_id(self) -> str:
        """Id of the instance."""
        return instance_id_of(self.order.request_id, self.index, self.order.workload)

    @property
    def instance_of(self) -> InstanceOf:
        """The instance and what it is of."""
        return InstanceOf.of(self.instance_id, self.order)

    @property
    def source(self) -> ProcessSource | None:
        """What a process backend runs; None for images and charts."""
        return self.order.launch_specification.process

    @property
    def function_name(self) -> str:
        """Name of the function."""
        return orders.function_name(self.order)


def worker_command(source: ProcessSource, workload: Workload = Workload.FUNCTION) -> list[str]:
    """Return the worker's command line. It has no secret, since everyone on the machine can read it."""
    if workload is Workload.TASK:
        return [source.python, "-m", "nvcf_worker", "task", source.file]
    target = source.file + (f":{source.handler}" if source.handler else "")
    return [source.python, "-m", "nvcf_worker", target]


@dataclass(frozen=True)
class InstancePlaces:
    """Folders and ports of one instance; `metrics` and `collector` are HOST:PORT.

    `secrets` is the folder with its `secrets.json`, `results` that of a task's results.
    """

    shared: Path
    assets: Path
    responses: Path
    health_port: int
    metrics: str | None = None
    collector: str | None = None
    secrets: Path | None = None
    results: Path | None = None


def worker_environment(
    spec: InstanceSpec,
    source: ProcessSource,
    places: InstancePlaces,
    inherited: Mapping[str, str],
    virtual_env: Path | None,
) -> dict[str, str]:
    """Return all variables of the worker process.

    The message's own win over the function's, and the agent's over the message's.
    """
    result = {name: inherited[name] for name in _INHERITED if name in inherited}
    programs = str(PurePosixPath(source.python).parent)
    result["PATH"] = f"{programs}:{result['PATH']}" if result.get("PATH") else programs
    if virtual_env is not None:
        result["VIRTUAL_ENV"] = str(virtual_env)
    result["PYTHONUNBUFFERED"] = "1"
    result |= spec.telemetry.variables
    if spec.telemetry.collector is not None and places.collector is not None:
        result |= collector_environment(spec.telemetry.collector.endpoints, places.collector)
    if places.secrets is not None:
        # A function may have a folder of its own.
        result[names.NVCF_SECRETS_DIR] = str(places.secrets)
    result |= source.environment
    result |= _of_the_message(spec.order)
    if places.secrets is not None:
        result[names.ESS_AGENT_CONFIG_DIR] = str(places.secrets)
    if spec.share.visible_devices is not None:
        result[CUDA_VISIBLE_DEVICES] = spec.share.visible_devices
    order, launch = spec.order, spec.order.launch_specification
    if launch.max_execution_seconds is not None:
        result[names.NVCF_MAX_EXECUTION_SECONDS] = str(launch.max_execution_seconds)
    return (
        result
        | ({} if places.results is None else task_variables(spec, PurePosixPath(places.results)))
        | _telemetry(spec, places)
        | {
            names.INSTANCE_ID: spec.instance_id,
            names.HEALTH_PORT: str(places.health_port),
            names.SHARED_CONFIG_DIR: str(places.shared),
            names.BASE_ASSET_DIR: str(places.assets),
            names.BASE_RESPONSE_DIR: str(places.responses),
            names.INSTANCE_TYPE: orders.instance_type(order),
            names.GPU_NAME: orders.gpu(order),
            names.ATTACHED_GPU_COUNT: str(len(spec.share.devices)),
            names.ZONE_NAME: spec.zone,
            names.ICMS_ENVIRONMENT: launch.icms_environment or "local",
            names.CLOUD_PROVIDER: launch.cloud_provider or "local",
        }
    )


def _of_the_message(order: CreationMessage) -> dict[str, str]:
    """Return the message's environment, with the ids that a control plane may leave out of it."""
    known = {
        names.NCA_ID: order.nca_id,
        names.FUNCTION_ID: orders.function_id(order),
        names.FUNCTION_VERSION_ID: orders.version_id(order),
    }
    given = orders.environment(order)
    return known | {name: value for name, value in given.items() if name not in _OF_THE_CLUSTER}


def task_variables(spec: InstanceSpec, results: PurePosixPath) -> dict[str, str]:
    """Return the variables of a task and of its worker (protocol.md, section 12.2)."""
    launch = spec.order.launch_specification
    found = {
        "NVCT_RESULTS_DIR": str(results),
        "NVCT_PROGRESS_FILE_PATH": str(results / PROGRESS_FILE),
        "NVCT_TASK_ID": orders.function_id(spec.order),
        "NVCT_TASK_NAME": spec.function_name,
        names.NVCT_NCA_ID: spec.order.nca_id,
        names.NVCT_INSTANCE_ID: spec.instance_id,
        names.NVCT_MAX_RUN_TIME_DURATION: launch.max_runtime_duration,
        names.NVCT_RESULT_HANDLING_STRATEGY: launch.result_handling_strategy,
        "NVCT_TERMINATION_GRACE_PERIOD_DURATION": launch.termination_grace_period_duration,
    }
    return {name: value for name, value in found.items() if value is not None}


def _telemetry(spec: InstanceSpec, places: InstancePlaces) -> dict[str, str]:
    found = {
        names.TRACEPARENT: spec.trace,
        names.NVCF_SCALING_TRACEPARENT: spec.order.trace_parent,
        names.NVCF_METRICS_ADDRESS: places.metrics,
    }
    return {name: value for name, value in found.items() if value is not None}
