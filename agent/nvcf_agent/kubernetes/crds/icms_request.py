"""`ICMSRequest` (`nvca.nvcf.nvidia.io/v2beta1`): one request of the control plane, and its instances."""

from enum import StrEnum
from typing import Annotated

from msgspec import field

from nvcf_agent.kubernetes.crds.schema import (
    PRESERVE,
    UNCHANGED,
    Anything,
    Members,
    Schema,
    Time,
    kept,
    rule,
    structural,
)
from nvcf_agent.state.request_status import RequestStatus
from nvcf_proto.icms.messages import (
    CreationMessage,
    FunctionDetails,
    LaunchSpecification,
    RequestId,
    TaskDetails,
)
from nvcf_proto.models import Record
from nvcf_proto.models.record import Count, Text

FINALIZER = "nvca.finalizers.nvidia.io"
"""Keeps a request until all of its instances are gone and reported."""

_BEGUN = (
    "['RequestCompleted', 'RequestCompletionAcknowledged', 'RequestFailed', 'RequestFailureAcknowledged']"
)
_NOT_AGAIN = rule(f"!(oldSelf in {_BEGUN}) || self != 'RequestPending'", "is never pending again")
# Members that NVIDIA's agent writes in another form than they have in the message.
_OF_ANY_FORM = frozenset(("configuration", "models", "telemetries", "traceState"))


class RequestPhase(StrEnum):
    """A request's status in short, for people."""

    PENDING = "Pending"
    COMPLETED = "Completed"
    FAILED = "Failed"


class InstanceKind(StrEnum):
    """What an instance is in the cluster."""

    POD = "Pod"
    JOB = "NGCJob"
    MINI_SERVICE = "MiniService"


class TerminationInfo(Record, frozen=True, kw_only=True):
    """What a termination message says. Written by NVIDIA's agent only."""

    availability_zone: Text | None = None
    instance_ids: tuple[Text, ...] = ()


class RequestSpec(Record, frozen=True, kw_only=True):
    """What the control plane asked for.

    `creation_msg_info` has the members of the creation message, its launch specification under
    `functionLaunchSpecification` or `taskLaunchSpecification`, in which this agent leaves out what may be
    secret.
    """

    request_id: Annotated[RequestId, kept(UNCHANGED)]
    sqs_message_receipt: Text | None = None
    nca_id: Annotated[Text, kept(UNCHANGED)] = ""
    message_batch_id: Text | None = None
    action: Annotated[Text, kept(UNCHANGED)]
    creation_msg_info: Members = field(default_factory=dict)
    termination_msg_info: TerminationInfo | None = None
    function_details: FunctionDetails | None = None
    task_details: TaskDetails | None = None
    function_id: Text | None = None
    function_version_id: Text | None = None


class InstanceStatus(Record, frozen=True, kw_only=True):
    """One instance. `agent` [ext] is what this agent has to know of it after a restart."""

    id: Text
    instance_type: InstanceKind = InstanceKind.POD
    status: Text = ""
    last_reported_status: Text | None = None
    last_reported_timestamp: Time | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    agent: Members = field(default_factory=dict)


class RequestState(Record, frozen=True, kw_only=True):
    """What has become of a request: the object's `status`. `phase` is [ext]."""

    phase: RequestPhase = RequestPhase.PENDING
    request_status: Annotated[RequestStatus, kept(_NOT_AGAIN)] = RequestStatus.NEW
    last_status_updated: Time | None = None
    last_observed_all_terminated_instances: Time | None = None
    last_ack_timestamp: Time | None = field(name="lastACKTimestamp", default=None)
    cache_reference_name: Text | None = None
    instances: dict[str, InstanceStatus] = field(default_factory=dict)
    reconcile_errors: Count = 0
    last_reconcile_error: Text | None = None
    request_status_trace_contexts: Anything = None


def spec_schema() -> Schema:
    """Return the schema of `spec`."""
    schema = structural(RequestSpec, defaults=True)
    message = _free(structural(CreationMessage)["properties"])
    launch = structural(LaunchSpecification)
    launch["properties"] = _free(launch["properties"])
    for name in ("launchSpecification", "functionDetails", "taskDetails"):
        del message[name]
    message |= {"gpuName": {"type": "string"}, "queueURL": {"type": "string"}}
    message |= {"functionLaunchSpecification": launch, "taskLaunchSpecification": launch}
    schema["properties"]["creationMsgInfo"]["properties"] = message
    return schema


def _free(properties: dict[str, Schema]) -> dict[str, Schema]:
    free: Schema = {PRESERVE: True}
    return {name: free if name in _OF_ANY_FORM else each for name, each in properties.items()}
