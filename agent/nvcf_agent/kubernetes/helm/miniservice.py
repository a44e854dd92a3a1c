"""The phases of a MiniService. Pure; times are Unix seconds.

    "" -> Installing -> Installed -> Starting -> Running        (all applied; all scheduled; all healthy)
             |              |            |          |
             v              +------------+----------+-> Failed
        InstallFailed                               a new generation: values are rendered and applied again

InstallFailed and Failed are final: the control plane orders another instance. CachingInProgress and Completed
are NVIDIA's, for model caches and tasks; this agent does not enter them.
"""

from enum import StrEnum

from nvcf_agent.kubernetes.crds.mini_service import (
    ENDS,
    Condition,
    MiniServiceFailure,
    MiniServicePhase,
    MiniServiceStatus,
    RenderedDetails,
    RenderedResources,
)
from nvcf_agent.kubernetes.helm.health import Health
from nvcf_agent.kubernetes.helm.records import Rendered, counts
from nvcf_agent.kubernetes.pods import status as pod_status
from nvcf_agent.kubernetes.pods.observe import Failure
from nvcf_agent.kubernetes.request_objects import timestamp
from nvcf_agent.state.causes import cause_of
from nvcf_agent.state.events import Ended, Ready, Unready
from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause

INSTALL = "InstallSuccessful"
OBJECTS = "ObjectsHealthy"
WORKERS = "WorkersHealthy"
CLEANUP = "CleanupSuccessful"
_MOST_MESSAGE = 32_000
_ALIVE = (MiniServicePhase.INSTALLED, MiniServicePhase.STARTING, MiniServicePhase.RUNNING)


class Reason(StrEnum):
    """Reasons of conditions; NVIDIA's words."""

    INVALID = "ReValResultInvalid"
    OBJECTS_FAILED = "ObjectsFailed"
    DEGRADED_WORKLOAD = "DegradedWorkload"
    DEGRADED_WORKER = "DegradedWorker"
    PENDING = "ObjectsTimedOutPending"
    INSTALL_ERROR = "UnexpectedInstallError"
    WAITING = "WaitingOnObjectReadiness"
    INSTALLED = "Installed"
    HEALTHY = "Healthy"
    CHART_UNAVAILABLE = "ChartUnavailable"
    STUCK = "NamespaceStuck"


_CATEGORIES = {Reason.INVALID: Category.INVALID_CHART, Reason.CHART_UNAVAILABLE: Category.CHART_PULL}


def is_over(status: MiniServiceStatus) -> bool:
    """Return whether nothing more happens but the deletion."""
    return status.phase in ENDS


def is_installed(status: MiniServiceStatus) -> bool:
    """Return whether the chart's objects were applied."""
    return status.phase in _ALIVE


def moved(status: MiniServiceStatus, phase: MiniServicePhase, now: float) -> MiniServiceStatus:
    """Return the status in another phase."""
    if phase is status.phase:
        return status
    return status.replace(phase=phase, last_phase_transition_time=timestamp(now))


def since(status: MiniServiceStatus, now: float) -> float:
    """Return for how many seconds the status has its phase."""
    began = pod_status.seconds(status.last_phase_transition_time)
    return 0.0 if began is None else max(0.0, now - began)


def noted(
    status: MiniServiceStatus, kind: str, holds: bool | None, reason: str, message: str, now: float
) -> MiniServiceStatus:
    """Return the status with one condition; `holds` is None while nobody knows."""
    said = {True: "True", False: "False", None: "Unknown"}[holds]
    known = {each.type: each for each in status.conditions}
    before = known.get(kind)
    at = before.last_transition_time if before is not None and before.status == said else timestamp(now)
    condition = Condition.from_dict(
        {
            "type": kind,
            "status": said,
            "reason": reason,
            "message": message[:_MOST_MESSAGE],
            "lastTransitionTime": at,
        }
    )
    if condition == before:
        return status
    return status.replace(conditions=tuple({**known, kind: condition}.values()))


def installed(status: MiniServiceStatus, rendered: Rendered, now: float) -> MiniServiceStatus:
    """Return the status after all objects of a generation were applied: the first time, or new values."""
    again = is_installed(status)
    resources = tuple(RenderedResources(gvk=gvk, count=count) for gvk, count in counts(rendered.objects))
    status = status.replace(
        rendered_details=RenderedDetails(hash=rendered.hash, resources=resources),
        observed_generation=rendered.generation,
        revision=status.revision + again,
    )
    message = "\n".join(rendered.notes)
    status = noted(status, INSTALL, True, Reason.INSTALLED, message, now)
    return status if again else moved(status, MiniServicePhase.INSTALLED, now)


def update_refused(
    status: MiniServiceStatus, reason: Reason, message: str, generation: int, now: float
) -> MiniServiceStatus:
    """Return the status after new values that cannot be installed: what was there before runs on."""
    status = status.replace(observed_generation=generation)
    told = f"the new values are not used, revision {status.revision} runs on: {message}"
    return noted(status, INSTALL, False, reason, told, now)


def failed(status: MiniServiceStatus, reason: Reason, failure: Failure, now: float) -> MiniServiceStatus:
    """Return the status of an instance that is given up."""
    if is_over(status):
        return status
    before = not is_installed(status)
    kind = INSTALL if before else WORKERS if reason is Reason.DEGRADED_WORKER else OBJECTS
    status = noted(status, kind, False, reason, failure.text, now)
    told = MiniServiceFailure(
        cause=failure.cause.value, category=failure.category.value, text=failure.text[:_MOST_MESSAGE]
    )
    phase = MiniServicePhase.INSTALL_FAILED if before else MiniServicePhase.FAILED
    return moved(status.replace(failure=told), phase, now)


def refused(status: MiniServiceStatus, reason: Reason, message: str, now: float) -> MiniServiceStatus:
    """Return the status of an instance whose chart cannot be installed."""
    category = _CATEGORIES.get(reason, Category.UNSUPPORTED)
    failure = Failure(cause_of(category), category, message)
    return failed(status, reason, failure, now)


def observed(status: MiniServiceStatus, health: Health, now: float, pending: float) -> MiniServiceStatus:
    """Return the status of an installed instance after a look at its objects."""
    if not is_installed(status):
        return status
    if health.failure is not None:
        reason = Reason.DEGRADED_WORKER if health.worker_failed else _reason(health.failure)
        return failed(status, reason, health.failure, now)
    status = _noted_health(status, OBJECTS, health.objects, now)
    status = _noted_health(status, WORKERS, health.worker, now)
    if status.phase is MiniServicePhase.INSTALLED and health.scheduled:
        status = moved(status, MiniServicePhase.STARTING, now)
    if health.is_good:
        return moved(status, MiniServicePhase.RUNNING, now)
    if status.phase is not MiniServicePhase.RUNNING and since(status, now) > pending:
        why = health.objects or health.worker
        text = f"not ready after {pending / 60:g} min: {why}"
        return failed(status, Reason.PENDING, Failure(Cause.DEGRADED_WORKER, Category.NOT_READY, text), now)
    return status


def _reason(failure: Failure) -> Reason:
    if failure.category is Category.CAPACITY:
        return Reason.PENDING
    return Reason.DEGRADED_WORKLOAD if failure.category is Category.NOT_READY else Reason.OBJECTS_FAILED


def _noted_health(status: MiniServiceStatus, kind: str, problem: str, now: float) -> MiniServiceStatus:
    reason = Reason.WAITING if problem else Reason.HEALTHY
    return noted(status, kind, not problem, reason, problem, now)


def event_of(instance_id: str, status: MiniServiceStatus) -> Ready | Unready | Ended:
    """Return what the agent learns from a status. Something of a failed instance is left."""
    problems = {each.type: each.message for each in status.conditions if each.status != "True"}
    if is_over(status):
        told = status.failure
        if told is None:
            return Ended(
                instance_id, f"its phase is {status.phase}", Category.UNKNOWN, final=True, gone=False
            )
        cause, category = Cause(told.cause), Category(told.category)
        return Ended(instance_id, told.text, category, cause, final=True, gone=False)
    if status.phase is MiniServicePhase.RUNNING:
        found = problems.get(OBJECTS) or problems.get(WORKERS)
        return Unready(instance_id, found) if found else Ready(instance_id)
    why = problems.get(OBJECTS) or problems.get(WORKERS) or problems.get(INSTALL)
    return Unready(instance_id, f"{status.phase or 'new'}: {why}" if why else f"{status.phase or 'new'}")
