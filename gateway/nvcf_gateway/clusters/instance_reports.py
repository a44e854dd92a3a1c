"""What agents' acknowledgements and reports make of an instance's record (protocol.md, section 6.6). Pure.

Reports come late, twice, and in any order. A closed record stays closed, and the first true cause is kept:
`instance-not-found` only says that nothing is left, and that is its use here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nvcf_proto.icms.causes import CATEGORIES, CONSEQUENCES, INVALID_CHART, SECONDARY, Cause
from nvcf_proto.icms.reports import InstanceState as Reported
from nvcf_proto.icms.reports import RequestState, Status, StatusReport
from nvcf_proto.models import Deployment, Instance, InstanceState

OK, NOT_FOUND, PRECONDITION_FAILED = 200, 404, 412
REPEAT_SECONDS = 10.0
"""A report that changes nothing else is not written again within this time."""
LONGEST_REASON = 4000
OVER = frozenset((InstanceState.COMPLETED, InstanceState.FAILED))
LOST = CATEGORIES[Cause.NOT_FOUND]
UNKNOWN = CATEGORIES[Cause.FAILED]
NO_REQUEST = "there is no such request in this cluster"
UNKNOWN_REQUEST = "nothing is known of this request"
_CAUSES = frozenset(cause.value for cause in Cause)


@dataclass(frozen=True)
class Decision:
    """The answer to an agent, and the record as it becomes; None: it stays as it is."""

    status: int
    detail: str = ""
    record: Instance | None = None


def acknowledged(record: Instance | None, cluster_id: str, now: float) -> Decision:
    """Decide about the acknowledgement of a request."""
    if record is None or record.cluster_id != cluster_id:
        return Decision(NOT_FOUND, NO_REQUEST)
    if record.state in OVER:
        return Decision(PRECONDITION_FAILED, f"the request is closed: {_first_line(record)}")
    if record.acknowledged_at is not None:
        return Decision(OK)
    if record.draining_since is not None:
        # Nobody needs it any more, and an agent that is refused makes no report.
        ended = record.changed(now, state=InstanceState.COMPLETED, released_at=now)
        return Decision(PRECONDITION_FAILED, "the request was ended before it was taken on", ended)
    return Decision(OK, record=record.changed(now, acknowledged_at=now))


def still_refused(record: Instance, deployment: Deployment | None) -> bool:
    """Return whether a record still says that a chart is refused, so that nobody tries it again."""
    if deployment is None or record.category != INVALID_CHART:
        return False
    return record.created_at >= deployment.changed_at


def reported(
    record: Instance | None, cluster_id: str, instance_id: str, report: StatusReport, now: float
) -> Decision:
    """Decide about the report of an instance. No record: it is known that the request is over.

    What is merely unknown is no reason to end an instance: see `lost_records`.
    """
    ended = report.instance_state is Reported.TERMINATED
    if record is None or record.cluster_id != cluster_id:
        return Decision(NOT_FOUND if ended else PRECONDITION_FAILED, NO_REQUEST)
    if record.id != instance_id and record.reported_at is not None:
        other = f"the instance of the request is {record.id}"
        return Decision(OK) if ended else Decision(PRECONDITION_FAILED, other)
    if record.state in OVER:
        if not ended:
            return Decision(PRECONDITION_FAILED, f"the instance has ended: {_first_line(record)}")
        return _changed(record, _released(record, report, now) | _truer(record, report), now)
    changes = {"id": instance_id, **_facts(report)}
    if ended:
        return _changed(record, changes | _ended(record, report, now), now)
    if record.acknowledged_at is None:
        changes["acknowledged_at"] = now
    return _changed(record, changes | _live(record, report, now), now)


def is_news(before: Instance, after: Instance) -> bool:
    """Return whether users are told of a change: another state, or a part of it was started again."""
    restarted = after.state is InstanceState.RUNNING and after.restarts > before.restarts
    return before.state is not after.state or (restarted and bool(after.reason))


def _changed(record: Instance, changes: dict[str, Any], now: float) -> Decision:
    """Return the decision to write these changes, with the times, unless they say nothing new."""
    wanted = record.replace(**changes)
    if wanted == record:
        recent = record.reported_at is not None and now - record.reported_at < REPEAT_SECONDS
        done = record.state in OVER
        return Decision(OK) if recent or done else Decision(OK, record=record.replace(reported_at=now))
    return Decision(OK, record=wanted.changed(now, reported_at=now))


def _facts(report: StatusReport) -> dict[str, Any]:
    """Return what a report says of the process, for people."""
    details = report.details
    if details is None:
        return {}
    return {
        "pid": details.pid,
        "restarts": details.restarts,
        "log_path": details.log_path,
        "health_port": details.health_port,
        "visible_devices": details.visible_devices,
        "exit_code": details.exit_code,
    }


def _live(record: Instance, report: StatusReport, now: float) -> dict[str, Any]:
    match report.instance_state:
        case Reported.SHUTTING_DOWN:
            began = record.draining_since if record.draining_since is not None else now
            return {"state": InstanceState.TERMINATING, "draining_since": began}
        case _ if record.state is InstanceState.TERMINATING:
            # Its end is announced; an older report changes nothing about that.
            return {}
        case Reported.RUNNING:
            said = report.details.ready_at if report.details is not None else None
            ready = record.ready_at if said is None else said
            changes = {"state": InstanceState.RUNNING, "ready_at": now if ready is None else ready}
            return changes | _why(record, report)
        case _:
            return {"state": InstanceState.STARTING, **_why(record, report)}


def _why(record: Instance, report: StatusReport) -> dict[str, Any]:
    # Why it ends is the autoscaler's to say.
    return {} if record.draining_since is not None else {"reason": _said(report)}


def _ended(record: Instance, report: StatusReport, now: float) -> dict[str, Any]:
    changes: dict[str, Any] = {"pid": None, **_released(record, report, now)}
    if record.draining_since is not None or record.state is InstanceState.TERMINATING:
        return changes | {"state": InstanceState.COMPLETED}
    return changes | _outcome(report)


def _outcome(report: StatusReport) -> dict[str, Any]:
    """Return state, category and reason by a terminated report alone."""
    finished = report.details is not None and report.details.exit_code == 0
    if finished or report.status == Status.TERMINATED_BY_USER:
        return {"state": InstanceState.COMPLETED, "category": None, "reason": _said(report)}
    category = category_of(report)
    text = _said(report) or report.termination_cause or report.status
    reason = f"{category}: {text}"[:LONGEST_REASON]
    return {"state": InstanceState.FAILED, "category": category, "reason": reason}


def _released(record: Instance, report: StatusReport, now: float) -> dict[str, Any]:
    """Say that nothing of the instance is left, if the report does.

    NVIDIA's agent reports an end that was asked for while the instance still runs, and a second time with the
    cause `instance-not-found` when it is gone. An agent that sends `details` reports an end only then. What
    was never taken on has never held anything.
    """
    final = report.details is not None and report.request_state is RequestState.CLOSED
    gone = final or report.termination_cause in SECONDARY or record.acknowledged_at is None
    return {"released_at": now} if gone and record.released_at is None else {}


def _truer(record: Instance, report: StatusReport) -> dict[str, Any]:
    """Replace the cause of a closed record if so far only its absence is known."""
    if record.category != LOST or report.termination_cause in SECONDARY | CONSEQUENCES:
        return {}
    return _outcome(report)


def category_of(report: StatusReport) -> str:
    """Return the category of a failure, in one word for programs."""
    if report.details is not None and report.details.category:
        return report.details.category
    cause = report.termination_cause
    if cause is None and report.status == Status.NO_CAPACITY:
        cause = Cause.NO_CAPACITY
    return CATEGORIES.get(Cause(cause), UNKNOWN) if cause in _CAUSES else UNKNOWN


def _said(report: StatusReport) -> str | None:
    """Return the agent's words for people."""
    text = (report.details.reason if report.details is not None else None) or report.health_info.error_log
    return text[:LONGEST_REASON] if text else None


def _first_line(record: Instance) -> str:
    return (record.reason or record.state.value).partition("\n")[0][:200]


def released_by(records: list[Instance], gpu: str, allocated: int, now: float) -> list[Instance]:
    """Return the closed instances whose GPUs are free by a heartbeat, with the time noted.

    They are when the cluster has no more allocated than its open instances hold, those included that it may
    not have taken on yet. `records` are all of one cluster.
    """
    ours = [each for each in records if each.gpu == gpu]
    held = sum(each.devices for each in ours if each.state not in OVER and each.acknowledged_at is not None)
    if allocated > held:
        return []
    left = [each for each in ours if each.state in OVER and each.released_at is None]
    return [each.replace(released_at=now) for each in left]


def lacking(records: list[Instance], gpu: str, allocated: int) -> bool:
    """Return whether a heartbeat counts more GPUs than the records of its cluster can explain."""
    ours = (each for each in records if each.gpu == gpu)
    return allocated > sum(each.devices for each in ours if each.released_at is None)
