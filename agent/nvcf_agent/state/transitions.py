"""What moves an instance from one state to the next: messages, starts that fail, and backend events. Pure."""

from dataclasses import dataclass, replace

from nvcf_agent.errors import LaunchError, Refused, StartError
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import Category, Phase, Request
from nvcf_broker.process import RestartPolicy
from nvcf_proto.compute import CreationMessage

RESTARTS = RestartPolicy(initial=0.5, factor=2.0, maximum=30.0, stable_after=30.0)
RESTART_LIMIT = 6
# Not the function's fault: the gateway is starting or away, and answers again as soon as it is there.
POSTPONEMENTS = RestartPolicy(initial=0.2, factor=2.0, maximum=3.0, stable_after=0.0)
SHORTEST_POSTPONEMENT = 0.2
WAITING = "waiting: "


@dataclass(frozen=True)
class Ready:
    """The instance's health check answers 200, for the first time or again."""

    instance_id: str


@dataclass(frozen=True)
class Unready:
    """The instance runs, and its health check has stopped answering 200."""

    instance_id: str
    reason: str


@dataclass(frozen=True)
class Ended:
    """The instance is gone, asked for or not; `reason` says how and with which last words."""

    instance_id: str
    reason: str
    category: Category = Category.CRASH


Event = Ready | Unready | Ended


def accepted(order: CreationMessage, share: Share, wall: float, created_at: float | None = None) -> Request:
    """A request that this cluster has taken on; `created_at` is its record's."""
    return Request(order, Phase.PENDING, created_at or wall, wall, share)


def refused(
    order: CreationMessage, category: Category, reason: str, wall: float, created_at: float | None = None
) -> Request:
    """A request that this cluster does not take on."""
    request = Request(order, Phase.FAILED, created_at or wall, wall, category=category, cleaned=True)
    return request._to(Phase.FAILED, wall, reason)


def creating(request: Request, *, wall: float) -> Request:
    """Its process is about to be started. A crash stays readable until it serves, a wait is over."""
    kept = None if (request.reason or "").startswith(WAITING) else request.reason
    moved = replace(request, verdict=None, ready_at=None, has_process=False, pid=None)
    return moved._to(Phase.CREATING, wall, kept)


def postponed(request: Request, reason: str, *, now: float, wall: float) -> Request:
    """It could not be started for a reason that lies outside the function; tried again soon."""
    if request.is_ending:
        return request
    count = request.postponements + 1
    delay = max(SHORTEST_POSTPONEMENT, POSTPONEMENTS.delay(count))
    moved = replace(request, postponements=count, retry_at=now + delay, has_process=False)
    return moved._to(Phase.CREATING, wall, WAITING + reason)


def launched(
    request: Request, *, pid: int | None, health_port: int | None, log_path: str, now: float, wall: float
) -> Request:
    """Its process runs and is not ready yet. Every process but the first counts as a restart."""
    moved = replace(
        request,
        has_process=True,
        has_run=True,
        pid=pid,
        health_port=health_port,
        log_path=log_path,
        launched_at=now,
        waiting_since=now,
        postponements=0,
        restarts=request.restarts + request.has_run,
    )
    return moved if moved.is_ending else moved._to(Phase.STARTING, wall, moved.reason)


def ready(request: Request, wall: float) -> Request:
    """Its health check answers."""
    if request.phase is not Phase.STARTING or not request.has_process:
        return request
    return replace(request, ready_at=wall)._to(Phase.RUNNING, wall, None)


def unready(request: Request, reason: str, *, now: float, wall: float) -> Request:
    """Its health check does not answer any more, its process runs on."""
    if request.phase is not Phase.RUNNING:
        return request
    moved = replace(request, ready_at=None, waiting_since=now)
    return moved._to(Phase.STARTING, wall, WAITING + reason)


def ended(request: Request, category: Category, reason: str, *, now: float, wall: float) -> Request:
    """Its process is gone: as asked for, or to be started again, or too often."""
    gone = replace(request, has_process=False, pid=None, health_port=None)
    if request.is_final:
        return gone
    if request.phase is Phase.TERMINATING:
        return gone._to(Phase.COMPLETED, wall, request.reason)
    if request.verdict is not None:
        gone = replace(gone, category=Category.NOT_READY)
        return gone._to(Phase.FAILED, wall, f"{request.verdict}\n{reason}")
    failures = RESTARTS.failures_after(request.failures, now - request.launched_at)
    gone = replace(gone, failures=failures, retry_at=now + RESTARTS.delay(failures), ready_at=None)
    if failures >= RESTART_LIMIT:
        return replace(gone, category=category)._to(Phase.FAILED, wall, reason)
    return gone._to(Phase.CREATING, wall, reason)


def not_launched(request: Request, reason: str, *, now: float, wall: float) -> Request:
    """Its own settings do not start; as if its process had ended at once."""
    return ended(replace(request, launched_at=now), Category.CRASH, reason, now=now, wall=wall)


def rejected(request: Request, category: Category, reason: str, wall: float) -> Request:
    """The backend will never run it."""
    if request.is_ending:
        return request
    return replace(request, category=category)._to(Phase.FAILED, wall, reason)


def terminating(request: Request, reason: str, grace: float, wall: float) -> Request:
    """It has been told to finish what it holds and to leave. A second order can only shorten its time."""
    if request.is_final:
        return request
    if request.phase is Phase.TERMINATING:
        left = max(0.0, request.grace - (wall - (request.draining_since or wall)))
        return replace(request, grace=grace, draining_since=wall) if grace < left else request
    moved = replace(request, grace=max(0.0, grace), draining_since=wall)
    return moved._to(Phase.TERMINATING, wall, reason)


def given_up(request: Request, verdict: str) -> Request:
    """Its process is being ended for a reason that its exit code will not tell."""
    return replace(request, verdict=verdict)


def settled(request: Request, wall: float) -> Request:
    """It was to leave and nothing of it runs."""
    if request.phase is not Phase.TERMINATING or request.has_process:
        return request
    return request._to(Phase.COMPLETED, wall, request.reason)


def interrupted(request: Request, reason: str, wall: float) -> Request:
    """Its process ended with its agent, which starts it again: after a stop, or found so after a crash."""
    if request.is_ending:
        return replace(request, has_process=False, pid=None)
    moved = replace(request, has_process=False, pid=None, health_port=None, retry_at=0.0, ready_at=None)
    phase = Phase.PENDING if request.phase is Phase.PENDING else Phase.CREATING
    return moved._to(phase, wall, None if phase is Phase.PENDING else WAITING + reason)


def after_event(request: Request, event: Event, *, now: float, wall: float) -> Request:
    """The request after something happened to its instance."""
    match event:
        case Ready():
            return ready(request, wall)
        case Unready(_, reason):
            return unready(request, reason, now=now, wall=wall)
        case Ended(_, reason, category):
            return ended(request, category, reason, now=now, wall=wall)


def after_failed_start(
    request: Request, error: StartError | LaunchError | Refused, *, now: float, wall: float
) -> Request:
    """The request after its instance could not be started: again soon, again as after a crash, or never."""
    match error:
        case StartError():
            return postponed(request, str(error), now=now, wall=wall)
        case LaunchError():
            return not_launched(request, str(error), now=now, wall=wall)
        case _:
            return rejected(request, Category.UNSUPPORTED, str(error), wall)
