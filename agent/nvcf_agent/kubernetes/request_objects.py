"""Instances of the agent as ICMSRequest objects, and back. Pure.

A request is three writes: the ICMSRequest with the message, its Secret, and its status with the instances.
One that lacks its Secret or its instances was not stored: its message has not been acknowledged.

An ICMSRequest may be read by people who must not have the credentials in a message: the worker's token, the
function's own secrets, logins of registries, signed links to models. These members of the message are in the
Secret `message-NAME`, and only there. (NVIDIA's agent keeps them in the ICMSRequest.)
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from nvcf_agent.icms.reports import report_of
from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.client.kinds import ICMS_REQUEST, SECRET
from nvcf_agent.kubernetes.crds.icms_request import (
    FINALIZER,
    InstanceKind,
    InstanceStatus,
    RequestPhase,
    RequestSpec,
    RequestState,
)
from nvcf_agent.kubernetes.names import (
    COMPONENT,
    MANAGED_BY,
    MANAGER,
    account_label,
    label_value,
    object_name,
    request_name,
)
from nvcf_agent.kubernetes.pods.names import owner_reference
from nvcf_agent.state import order as orders
from nvcf_agent.state.managed_instance import ManagedInstance
from nvcf_agent.state.persisted_state import StoredInstance
from nvcf_agent.state.request_status import RequestStatus, request_status
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.messages import CreationMessage, decode_base64, encode_base64
from nvcf_proto.icms.names import Workload
from nvcf_proto.icms.reports import InstanceState

SELECTOR = f"{MANAGED_BY}={MANAGER}"
MESSAGE = "request-message"
SECRET_SELECTOR = f"{SELECTOR},{COMPONENT}={MESSAGE}"

SECRET_MEMBERS = ("environment", "configuration", "models", "resources")
"""Members of a launch specification that may be secret."""

_LAUNCH = {Workload.FUNCTION: "functionLaunchSpecification", Workload.TASK: "taskLaunchSpecification"}
_NOT_OF_MESSAGE = ("gpuName", "queueURL", "launchArtifacts", *_LAUNCH.values())
_LONGEST_ERROR = 1024
_PHASES = {
    RequestStatus.COMPLETED: RequestPhase.COMPLETED,
    RequestStatus.COMPLETION_ACKNOWLEDGED: RequestPhase.COMPLETED,
    RequestStatus.FAILED: RequestPhase.FAILED,
    RequestStatus.FAILURE_ACKNOWLEDGED: RequestPhase.FAILED,
}


def secret_name(request_id: str) -> str:
    """Return the name of the Secret of a request's message."""
    return object_name("message", request_name(request_id))


def request_object(order: CreationMessage, namespace: str) -> Object:
    """Return the ICMSRequest of a message, without its status."""
    message = order.to_dict()
    launch = message.pop("launchSpecification")
    details = {"functionDetails": message.pop("functionDetails", None)}
    details["taskDetails"] = message.pop("taskDetails", None)
    shown = {name: value for name, value in launch.items() if name not in SECRET_MEMBERS}
    spec = RequestSpec.from_dict(
        {
            "requestId": order.request_id,
            "ncaId": order.nca_id,
            "messageBatchId": order.message_batch_id,
            "action": order.action,
            "creationMsgInfo": message | {"gpuName": orders.gpu(order), _LAUNCH[order.workload]: shown},
            **details,
        }
    )
    body = ICMS_REQUEST.new(request_name(order.request_id), namespace, _labels(order), spec=spec.to_dict())
    body["metadata"]["finalizers"] = [FINALIZER]
    return body


def message_secret(order: CreationMessage, request: Object) -> Object:
    """Return the Secret of a message; it goes with its ICMSRequest, which is as the API server has it."""
    launch = order.launch_specification.to_dict()
    data = {name: encode_base64(launch[name]) for name in SECRET_MEMBERS if name in launch}
    namespace, labels = request["metadata"]["namespace"], {MANAGED_BY: MANAGER, COMPONENT: MESSAGE}
    body = SECRET.new(secret_name(order.request_id), namespace, labels, type="Opaque", data=data)
    body["metadata"]["ownerReferences"] = owner_reference(request)
    return body


def request_state(instances: Mapping[str, StoredInstance], wall: float) -> Object:
    """Return the status of a request with these instances at Unix time `wall`."""
    restored = {instance_id: each.restored() for instance_id, each in instances.items()}
    status = request_status(restored.values())
    failed = next((each for each in restored.values() if each.category is not None and each.reason), None)
    state = RequestState(
        phase=_PHASES.get(status, RequestPhase.PENDING),
        request_status=status,
        last_status_updated=timestamp(wall),
        last_reconcile_error=_error(failed) if failed is not None else None,
        instances={
            instance_id: _instance_status(each, instances[instance_id])
            for instance_id, each in restored.items()
        },
    )
    members = state.to_dict()
    members["instances"] = {key: each.to_dict() for key, each in state.instances.items()}
    return members


def _instance_status(instance: ManagedInstance, stored: StoredInstance) -> InstanceStatus:
    agent = stored.to_dict()
    for name in ("order", "requestStatus"):
        agent.pop(name, None)
    is_helm = instance.order.launch_specification.helm_chart
    return InstanceStatus(
        id=instance.id,
        instance_type=InstanceKind.MINI_SERVICE if is_helm else InstanceKind.POD,
        status=instance_state(instance).value,
        last_reported_status=instance.reported,
        agent=agent,
    )


def instance_state(instance: ManagedInstance) -> InstanceState:
    """Return an instance's state in the words of reports."""
    report = report_of(instance)
    return InstanceState(report.instance_state) if report is not None else InstanceState.TERMINATED


def stored_instances(request: Object, secret: Object) -> list[StoredInstance]:
    """Return the instances of an ICMSRequest, with its message's Secret. Raises `InvalidRecord`."""
    message = _order(request["spec"], secret).to_dict()
    state = RequestState.from_dict(request.get("status") or {}, "status")
    found = []
    for instance_id, each in state.instances.items():
        # The word for readers is of this one instance, that in the object of them all.
        stored = StoredInstance.from_dict(each.agent | {"order": message}, instance_id)
        instance = stored.restored()
        if instance.id != instance_id:
            raise InvalidRecord(f"status.instances.{instance_id}", f"is of instance {instance.id}")
        found.append(stored.replace(request_status=request_status((instance,)).value))
    return found


def is_complete(request: Object, secrets: Collection[str]) -> bool:
    """Whether a request was stored to its end. `secrets` are the names of all Secrets of messages."""
    has_instances = bool((request.get("status") or {}).get("instances"))
    return has_instances and secret_name(request["spec"]["requestId"]) in secrets


def _order(spec: Object, secret: Object) -> CreationMessage:
    info: dict[str, Any] = spec["creationMsgInfo"]
    message = {name: value for name, value in info.items() if name not in _NOT_OF_MESSAGE}
    launch: Object = next((info[name] for name in _LAUNCH.values() if name in info), {})
    data: dict[str, str] = secret.get("data") or {}
    hidden = {name: decode_base64(value, f"data.{name}") for name, value in data.items()}
    details = {name: spec[name] for name in ("functionDetails", "taskDetails") if name in spec}
    return CreationMessage.from_dict(message | details | {"launchSpecification": launch | hidden})


def _labels(order: CreationMessage) -> dict[str, str]:
    is_task = order.workload is Workload.TASK
    found = {
        "icms-request-id": order.request_id,
        "gpu-name": orders.gpu(order),
        "nvcf.nvidia.io/message-batch-id": order.message_batch_id,
    }
    if is_task:
        found["nvca.nvcf.nvidia.io/task-id"] = orders.function_id(order)
    else:
        found["nvca.nvcf.nvidia.io/function-id"] = orders.function_id(order)
        found["nvca.nvcf.nvidia.io/function-version-id"] = orders.version_id(order)
    labels = {name: label_value(value) for name, value in found.items() if value}
    return labels | {MANAGED_BY: MANAGER, "nca-id": account_label(order.nca_id)}


def _error(instance: ManagedInstance) -> str:
    return f"{instance.category}: {instance.reason}"[:_LONGEST_ERROR]


def timestamp(wall: float) -> str:
    """Return a Unix time as Kubernetes writes it."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
