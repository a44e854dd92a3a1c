"""The environment of an instance's containers (protocol.md, section 5.1). Pure.

The platform's variables win over the message's, the message's over the function's own, and these over the
telemetry settings of operator and account. They reach the containers through Secrets, never in the pod.
"""

from pathlib import PurePosixPath

from nvcf_agent.backends.environment import InstanceSpec, task_variables
from nvcf_agent.kubernetes.pods.launch import ContainerLaunch
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.state import order as orders
from nvcf_otel.byoo import Placement
from nvcf_otel.byoo.plan import collector_environment
from nvcf_proto import environment as names
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.icms.names import Workload
from nvcf_proto.models import TelemetryType

HEALTH_PORT = 8080
_OTHER_HEALTH_PORT = 18080
SHARED = "/config/shared"
INFERENCE_DATA = "/var/inf"
TASK_DATA = "/var/task"
TASK_RESULTS = "/var/task/results"
INSTANCE_DATA = "/var/run/nvcf/info"
SECRETS = "/var/secrets"
PLACEMENT = Placement()
# Of the grace period, for what comes after the last request.
_LAST_SECONDS = 5
# Those of the message that open something: no function's container gets them beside its worker's token.
_NOT_FOR_FUNCTIONS = frozenset((names.SECRETS_ASSERTION_TOKEN, "TRACING_ACCESS_TOKEN"))


def health_port(launch: ContainerLaunch) -> int:
    """Return the worker's health port: NVIDIA's, unless the function uses it itself.

    What a task listens on is not known: its worker leaves it the usual one.
    """
    if launch.is_task:
        return _OTHER_HEALTH_PORT
    taken = {launch.message.get(names.INFERENCE_PORT), launch.message.get(names.INFERENCE_HEALTH_PORT)}
    return _OTHER_HEALTH_PORT if str(HEALTH_PORT) in taken else HEALTH_PORT


def function_variables(spec: InstanceSpec, launch: ContainerLaunch, settings: PodSettings) -> dict[str, str]:
    """Return the environment of a function's or task's container. In library mode its worker is in it."""
    result = {**_telemetry(spec, settings), **launch.variables}
    if launch.is_library:
        message = {name: value for name, value in launch.message.items() if name not in _NOT_FOR_FUNCTIONS}
        result |= {**message, **_of_the_worker(spec, launch, settings)}
    return result | _of_the_instance(spec, settings)


def worker_variables(spec: InstanceSpec, launch: ContainerLaunch, settings: PodSettings) -> dict[str, str]:
    """Return the environment of the worker's own container, which is not the function's."""
    return {**_telemetry(spec, settings), **launch.message, **_of_the_worker(spec, launch, settings)}


def _of_the_instance(spec: InstanceSpec, settings: PodSettings) -> dict[str, str]:
    order, launch = spec.order, spec.order.launch_specification
    return {
        "NVCF_REGION": settings.region or next(iter(launch.regions), ""),
        "NVCF_INSTANCETYPE": orders.instance_type(order),
        "NVCF_INSTANCETYPE_VALUE": order.instance_type_value,
        "NVCF_BACKEND": settings.cluster_name or spec.zone,
        "NVCF_ENV": launch.icms_environment or settings.environment,
        "NVCF_NCA_ID": order.nca_id,
        "NVCF_INSTANCE_ID": spec.instance_id,
        names.INSTANCE_ID: spec.instance_id,
        **(_of_the_task(spec) if order.workload is Workload.TASK else _of_the_function(order)),
    }


def _of_the_function(order: CreationMessage) -> dict[str, str]:
    return {
        "NVCF_FUNCTION_ID": orders.function_id(order),
        "NVCF_FUNCTION_VERSION_ID": orders.version_id(order),
        "NVCF_FUNCTION_NAME": orders.function_name(order),
    }


def _of_the_task(spec: InstanceSpec) -> dict[str, str]:
    return task_variables(spec, PurePosixPath(TASK_RESULTS))


def _of_the_worker(spec: InstanceSpec, launch: ContainerLaunch, settings: PodSettings) -> dict[str, str]:
    order, said = spec.order, spec.order.launch_specification
    provider = said.cloud_provider
    known = {names.NCA_ID: order.nca_id}
    if launch.is_task:
        known |= _of_the_task(spec)
    else:
        known |= {
            names.FUNCTION_ID: orders.function_id(order),
            names.FUNCTION_VERSION_ID: orders.version_id(order),
        }
    limit = said.max_execution_seconds
    found = {
        **{name: value for name, value in known.items() if name not in launch.message},
        names.INSTANCE_ID: spec.instance_id,
        names.INSTANCE_TYPE: orders.instance_type(order),
        "INSTANCE_TYPE_NAME": orders.instance_type(order),
        "INSTANCE_TYPE_VALUE": order.instance_type_value,
        names.ICMS_ENVIRONMENT: said.icms_environment or settings.environment,
        names.CLOUD_PROVIDER: provider,
        "NVCF_CLOUD_PROVIDER": provider,
        names.GPU_NAME: orders.gpu(order),
        names.ATTACHED_GPU_COUNT: str(order.requested_gpu_count),
        names.ZONE_NAME: spec.zone,
        names.INFERENCE_READY_TIMEOUT: f"{settings.ready_seconds}s",
        names.HEALTH_PORT: str(health_port(launch)),
        names.SHARED_CONFIG_DIR: SHARED,
        # Where functions of NVIDIA's platform find them.
        names.BASE_ASSET_DIR: f"{INFERENCE_DATA}/inputAssets",
        names.BASE_RESPONSE_DIR: f"{INFERENCE_DATA}/response",
        names.TRACEPARENT: spec.trace,
        names.NVCF_SCALING_TRACEPARENT: order.trace_parent,
        names.NVCF_MAX_EXECUTION_SECONDS: str(limit) if limit is not None else None,
        names.NVCF_METRICS_ADDRESS: "health" if spec.telemetry.metrics else None,
        names.NVCF_GRACE_SECONDS: str(max(1, settings.grace - _LAST_SECONDS)),
        names.NVCF_OPEN_FILES: None if launch.is_library else "true",
    }
    return {name: value for name, value in found.items() if value is not None} | dict(settings.variables)


def _telemetry(spec: InstanceSpec, settings: PodSettings) -> dict[str, str]:
    result = dict(spec.telemetry.variables)
    collector = spec.telemetry.collector
    if collector is None:
        return result
    address = f"{settings.collector_host}:{PLACEMENT.grpc_port}"
    result |= collector_environment(collector.endpoints, address)
    for kind in TelemetryType:
        if kind in collector.endpoints:
            result[f"OTEL_EXPORTER_OTLP_{kind.value}_ENDPOINT"] = f"http://{address}"
            result[f"OTEL_EXPORTER_OTLP_{kind.value}_PROTOCOL"] = "grpc"
    result["OTEL_HEALTH_CHECK_ENDPOINT"] = f"http://{settings.collector_host}:{PLACEMENT.health_port}"
    return result
