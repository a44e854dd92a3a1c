"""The state of a request in NVIDIA's words, from its instances' phases (protocol.md, section 6.6). Pure."""

from collections.abc import Collection
from enum import StrEnum

from nvcf_agent.state.managed_instance import ManagedInstance, Phase
from nvcf_proto.icms.reports import InstanceState


class RequestStatus(StrEnum):
    """`requestStatus` of an ICMSRequest. This agent never says that models are being cached."""

    NEW = ""
    PENDING = "RequestPending"
    IN_PROGRESS = "RequestInProgress"
    CACHING = "RequestCachingInProgress"
    INSTANCES_IN_PROGRESS = "RequestInstancesInProgress"
    COMPLETED = "RequestCompleted"
    COMPLETION_ACKNOWLEDGED = "RequestCompletionAcknowledged"
    FAILED = "RequestFailed"
    FAILURE_ACKNOWLEDGED = "RequestFailureAcknowledged"


_OF_PHASE = {
    Phase.PENDING: RequestStatus.PENDING,
    Phase.CREATING: RequestStatus.IN_PROGRESS,
    Phase.STARTING: RequestStatus.INSTANCES_IN_PROGRESS,
    Phase.RUNNING: RequestStatus.COMPLETED,
    Phase.TERMINATING: RequestStatus.COMPLETED,
    Phase.COMPLETED: RequestStatus.COMPLETED,
    Phase.FAILED: RequestStatus.FAILED,
}
# The first of these that an instance has is the request's.
_ORDER = (
    RequestStatus.FAILED,
    RequestStatus.IN_PROGRESS,
    RequestStatus.INSTANCES_IN_PROGRESS,
    RequestStatus.PENDING,
    RequestStatus.COMPLETED,
)
_SETTLED = {
    Phase.RUNNING: InstanceState.RUNNING,
    Phase.COMPLETED: InstanceState.TERMINATED,
    Phase.FAILED: InstanceState.TERMINATED,
}


def request_status(instances: Collection[ManagedInstance]) -> RequestStatus:
    """Return the status of the request of these instances, which are all that it has."""
    if not any(each.acknowledged for each in instances):
        return RequestStatus.NEW
    found = {_OF_PHASE[each.phase] for each in instances}
    status = next(each for each in _ORDER if each in found)
    reported = all(_SETTLED.get(each.phase) == each.reported for each in instances)
    if reported and status is RequestStatus.FAILED:
        return RequestStatus.FAILURE_ACKNOWLEDGED
    if reported and status is RequestStatus.COMPLETED:
        return RequestStatus.COMPLETION_ACKNOWLEDGED
    return status
