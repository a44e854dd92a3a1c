"""What the control plane is to know of each request and instance, from their state alone. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from nvcf_agent.state.causes import ending_status, error_log
from nvcf_agent.state.managed_instance import ManagedInstance, Phase
from nvcf_agent.state.persisted_state import EndedInstance
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.messages import Action
from nvcf_proto.icms.names import Workload
from nvcf_proto.icms.reports import (
    HELD_REQUESTS,
    Acknowledgement,
    HealthInfo,
    InstanceState,
    ProcessDetails,
    RequestState,
    Status,
    StatusReport,
)

_STATES = {
    Phase.PENDING: InstanceState.STARTING,
    Phase.CREATING: InstanceState.STARTING,
    Phase.STARTING: InstanceState.STARTING,
    Phase.RUNNING: InstanceState.RUNNING,
    Phase.TERMINATING: InstanceState.SHUTTING_DOWN,
    Phase.COMPLETED: InstanceState.TERMINATED,
    Phase.FAILED: InstanceState.TERMINATED,
}


class Key(NamedTuple):
    """What is told: a request's acknowledgement, or with `instance_id` that instance's state."""

    request_id: str
    instance_id: str | None = None


@dataclass(frozen=True)
class Wanted:
    """A call to make until it is answered. `since` is the Unix time of the request's creation."""

    body: Acknowledgement | StatusReport
    since: float
    trace: str | None = None

    @property
    def is_terminated(self) -> bool:
        """Whether it reports the end of an instance, which is never repeated."""
        return isinstance(self.body, StatusReport) and self.body.instance_state is InstanceState.TERMINATED


class WantedCalls:
    """All that the control plane is to know. It remembers the calls of instances that have not changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[ManagedInstance, tuple[Key, Wanted] | None]] = {}

    def of(
        self, instances: Iterable[ManagedInstance], ended: Mapping[str, EndedInstance]
    ) -> dict[Key, Wanted]:
        """Return the calls by request and instance."""
        before, self._known = self._known, {}
        for instance in instances:
            found = before.get(instance.id)
            if found is None or found[0] is not instance:
                found = instance, _call_of(instance)
            self._known[instance.id] = found
        calls = dict(call for _, call in self._known.values() if call is not None)
        for instance_id, gone in ended.items():
            if not gone.reported:
                calls[Key(gone.request_id, instance_id)] = Wanted(report_of_ended(gone), since=0.0)
        return calls


def _call_of(instance: ManagedInstance) -> tuple[Key, Wanted] | None:
    """Return the call for an instance. Its report waits for its request's acknowledgement."""
    order = instance.order
    if not instance.acknowledged:
        body = Acknowledgement(instance_count=order.instance_count, message_batch_id=order.message_batch_id)
        return Key(instance.request_id), Wanted(body, instance.created_at, order.trace_parent)
    report = report_of(instance)
    return (
        None
        if report is None
        else (Key(instance.request_id, instance.id), Wanted(report, instance.created_at))
    )


def report_of(instance: ManagedInstance) -> StatusReport | None:
    """Return the report of an instance's state; None while there is nothing to report.

    The end is reported once, when nothing runs any more, and with its true cause.
    """
    if instance.is_final:
        told = instance.reported is InstanceState.TERMINATED
        return _terminated(instance) if instance.is_over and not told else None
    return StatusReport(
        status=Status.FULFILLED.value,
        instance_state=_STATES[instance.phase],
        request_state=RequestState.ACTIVE,
        action=_creation(instance),
        instance_ips=instance.ips,
        details=_details(instance),
    )


def _creation(instance: ManagedInstance) -> str:
    task = instance.order.workload is Workload.TASK
    return (Action.CREATE_TASK if task else Action.CREATE_FUNCTION).value


def _terminated(instance: ManagedInstance) -> StatusReport:
    cause, failed = instance.cause, instance.phase is Phase.FAILED
    by_user = cause is Cause.BY_USER
    return StatusReport(
        status=ending_status(cause).value,
        instance_state=InstanceState.TERMINATED,
        request_state=RequestState.CLOSED,
        action=Action.TERMINATE.value if by_user else _creation(instance),
        termination_cause=cause.value if cause is not None and not by_user else None,
        system_failure=cause.value if cause is not None and failed else None,
        health_info=HealthInfo(error_log(cause, instance.reason or "")) if cause and failed else HealthInfo(),
        instance_ips=instance.ips,
        details=_details(instance),
        held_requests=instance.held[:HELD_REQUESTS],
    )


def _details(instance: ManagedInstance) -> ProcessDetails:
    return ProcessDetails(
        pid=instance.pid,
        restarts=instance.restarts,
        log_path=instance.log_path,
        health_port=instance.health_port,
        visible_devices=instance.share.visible_devices,
        ready_at=instance.ready_at,
        node=instance.share.node or None,
        category=instance.category.value if instance.category is not None else None,
        reason=instance.reason or instance.why_restarted or None,
        start_parts=instance.part_seconds,
        function_version_id=instance.version_id or None,
        gpu_specification_id=instance.order.gpu_specification_id,
        exit_code=instance.exit_code,
    )


def report_of_ended(gone: EndedInstance) -> StatusReport:
    """Return the report of an instance that was ended without being known here: nothing of it runs."""
    by_user = gone.cause is Cause.BY_USER
    return StatusReport(
        status=ending_status(gone.cause).value,
        instance_state=InstanceState.TERMINATED,
        request_state=RequestState.CLOSED,
        action=Action.TERMINATE.value,
        termination_cause=None if by_user else gone.cause.value,
        details=ProcessDetails(reason="this agent has no such instance"),
    )
