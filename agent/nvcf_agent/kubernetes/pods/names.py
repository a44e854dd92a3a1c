"""Names, labels and annotations of an instance's objects. Pure."""

from collections.abc import Mapping
from typing import Any

from nvcf_agent.backends.environment import InstanceOf, InstanceSpec
from nvcf_agent.kubernetes.names import (
    COMPONENT,
    MANAGED_BY,
    MANAGER,
    account_label,
    label_value,
    object_name,
)
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.state import order as orders
from nvcf_proto.icms.names import Workload

INSTANCE = "function-instance"
PREFETCH = "prefetch"
OURS = f"{MANAGED_BY}={MANAGER},{COMPONENT}={INSTANCE}"
"""Selects all objects of instances, those of tasks too."""
INSTANCE_TYPE = "nvca.nvcf.nvidia.io/instance-type"
"""Label of nodes."""

INSTANCE_ID = "nvcf.nvidia.io/instance-id"
REQUEST_ID = "nvcf.nvidia.io/request-id"
FUNCTION_ID = "nvcf.nvidia.io/function-id"
VERSION_ID = "nvcf.nvidia.io/function-version-id"
TASK_ID = "nvcf.nvidia.io/task-id"
SECRET_SERVICE = "nvcf.nvidia.io/secret-service"
TRACE = "nvcf.nvidia.io/traceparent"
REQUEST = "nvcf.nvidia.io/request"
"""Label with the name of the request, by which all its objects are found."""
ACCOUNT = "nca-id"


def request_of(instance_id: str) -> str:
    """Return the name of an instance's request: `sr-…`."""
    return object_name(instance_id.partition("-")[2])


def pod_name(instance_id: str) -> str:
    """Return the name of an instance's pod: its id."""
    return object_name(instance_id)


def secret_name(instance_id: str, what: str) -> str:
    """Return the name of a Secret or ConfigMap of one instance."""
    return object_name(instance_id, what)


def labels(spec: InstanceSpec, settings: PodSettings) -> dict[str, str]:
    """Return the labels of an instance's pod and of the objects that belong to it."""
    order, launch = spec.order, spec.order.launch_specification
    function, version = orders.function_id(order), orders.version_id(order)
    found = {
        "icms-request-id": order.request_id,
        "gpu-name": orders.gpu(order),
        "environment": launch.icms_environment or settings.environment,
        **(
            {"task-id": function, "TASK_ID": function}
            if order.workload is Workload.TASK
            else {
                "function-id": function,
                "function-version-id": version,
                "FUNCTION_ID": function,
                "FUNCTION_VERSION_ID": version,
            }
        ),
        "ENVIRONMENT": launch.icms_environment or settings.environment,
        "GPU_COUNT": str(order.requested_gpu_count),
        "nvcf.nvidia.io/message-batch-id": order.message_batch_id,
        "nvcf.nvidia.io/deployment-id": order.deployment_id or launch.deployment_id,
        "nvcf.nvidia.io/gpu-specification-id": order.gpu_specification_id or launch.gpu_specification_id,
    }
    account = account_label(order.nca_id)
    return {
        MANAGED_BY: MANAGER,
        COMPONENT: INSTANCE,
        ACCOUNT: account,
        "NCA_ID": account,
        REQUEST: request_of(spec.instance_id),
        **{name: label_value(value) for name, value in found.items() if value},
    }


def annotations(spec: InstanceSpec, settings: PodSettings) -> dict[str, str]:
    """Return the annotations of an instance's pod: what labels are too short for."""
    order, launch = spec.order, spec.order.launch_specification
    own = {
        INSTANCE_ID: spec.instance_id,
        REQUEST_ID: order.request_id,
        **(
            {TASK_ID: orders.function_id(order)}
            if order.workload is Workload.TASK
            else {FUNCTION_ID: orders.function_id(order), VERSION_ID: orders.version_id(order)}
        ),
        SECRET_SERVICE: str(spec.instance_of.has_secret_service).lower(),
        "instance-count": str(order.instance_count),
        "icms-cluster-group": order.cluster_group or "",
        "nvcf.nvidia.io/backend": settings.cluster_name or spec.zone,
        "nvcf.nvidia.io/environment": launch.icms_environment or settings.environment,
        "nvcf.nvidia.io/region": settings.region or next(iter(launch.regions), ""),
        "nvcf.nvidia.io/instance-type-name": orders.instance_type(order),
        "nvcf.nvidia.io/instance-type-value": order.instance_type_value,
    }
    trace = {TRACE: spec.trace} if spec.trace else {}
    return own | trace


def instance_of(pod: Mapping[str, Any]) -> InstanceOf | None:
    """Return the instance that a pod is of; None if it says none."""
    said = pod["metadata"].get("annotations") or {}
    if INSTANCE_ID not in said:
        return None
    task = said.get(TASK_ID)
    return InstanceOf(
        said[INSTANCE_ID],
        said.get(FUNCTION_ID, "") if task is None else task,
        said.get(VERSION_ID, "") if task is None else task,
        said.get(SECRET_SERVICE) == "true",
        task is not None,
    )


def owner_reference(owner: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return `ownerReferences` to an object as the API server has it; empty without one."""
    if owner is None:
        return []
    metadata = owner["metadata"]
    return [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "controller": True,
        }
    ]
