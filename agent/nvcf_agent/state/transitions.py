"""State transitions of an instance: messages, failed starts and backend events. Pure; times are passed in.

    PENDING -> CREATING -> STARTING -> RUNNING -> TERMINATING -> COMPLETED
                  ^           |  ^        |
                  |           v  |        v        (not ready any more: back to STARTING)
                  +-- its process ended: again, a few times, then FAILED with a category and a text

Where the backend restarts nothing, an end is final: the control plane orders another instance. So is the end
of a task, which is COMPLETED if its process exits with 0.

A request waits in PENDING until the control plane has answered its acknowledgement. FAILED and COMPLETED are
final. `now` is in seconds of a monotonic clock, `wall` Unix time. Every function
returns the instance after the transition; an instance in a state without that transition is returned as it
was.
"""

from dataclasses import replace

from nvcf_agent.errors import LaunchError, Refused, StartError
from nvcf_agent.state import order as orders
from nvcf_agent.state.causes import cause_of
from nvcf_agent.state.events import Ended, Event, Observed, Progress, Ready, Unready
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import REASON_LIMIT, Category, ManagedInstance, Phase
from nvcf_broker.process import RestartPolicy
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.models import ResultHandling

RESTARTS = RestartPolicy(initial=0.5, factor=2.0, maximum=30.0, stable_after=30.0)
RESTART_LIMIT = 6
# For causes outside the function, such as a gateway that starts.
POSTPONEMENTS = RestartPolicy(initial=0.2, factor=2.0, maximum=3.0, stable_after=0.0)
SHORTEST_POSTPONEMENT = 0.2
WAITING = "waiting: "
WORKER_GRACE_SECONDS = 120.0
"""What the worker of a task that has ended gets to report what is left."""


def accepted(order: CreationMessage, share: Share, wall: float, index: int = 0) -> ManagedInstance:
    """Return a new instance that this cluster accepts."""
    return ManagedInstance(order, Phase.PENDING, wall, wall, index, share)


def refused(
    order: CreationMessage, category: Category, reason: str, wall: float, index: int = 0
) -> ManagedInstance:
    """Return a new instance that this cluster refuses for good."""
    instance = ManagedInstance(order, Phase.PENDING, wall, wall, index, cleaned=True)
    return _failed(instance, category, reason, wall)


def acknowledged(instance: ManagedInstance) -> ManagedInstance:
    """Note that the control plane has answered the acknowledgement: the instance may start."""
    return instance if instance.acknowledged else replace(instance, acknowledged=True)


def _failed(
    instance: ManagedInstance, category: Category, reason: str, wall: float, cause: Cause | None = None
) -> ManagedInstance:
    moved = replace(instance, category=category, cause=cause or cause_of(category))
    return moved._to(Phase.FAILED, wall, reason)


def creating(instance: ManagedInstance, *, wall: float) -> ManagedInstance:
    """Move to CREATING. The reason of a crash stays until the instance serves, that of a wait goes."""
    kept = None if (instance.reason or "").startswith(WAITING) else instance.reason
    moved = replace(instance, give_up_reason=None, ready_at=None, has_process=False, pid=None)
    return moved._to(Phase.CREATING, wall, kept)


def postponed(instance: ManagedInstance, reason: str, *, now: float, wall: float) -> ManagedInstance:
    """Schedule another start soon, after one that failed for a reason outside the function."""
    if instance.is_ending:
        return instance
    count = instance.postponements + 1
    delay = max(SHORTEST_POSTPONEMENT, POSTPONEMENTS.delay(count))
    moved = replace(instance, postponements=count, retry_at=now + delay, has_process=False)
    return moved._to(Phase.CREATING, wall, WAITING + reason)


def launched(
    instance: ManagedInstance,
    *,
    pid: int | None,
    health_port: int | None,
    log_path: str,
    now: float,
    wall: float,
) -> ManagedInstance:
    """Move to STARTING: the process runs. Every process after the first counts as a restart."""
    moved = replace(
        instance,
        has_process=True,
        has_run=True,
        pid=pid,
        health_port=health_port,
        log_path=log_path,
        launched_at=now,
        waiting_since=now,
        postponements=0,
        restarts=instance.restarts + (instance.has_run and not instance.is_task),
    )
    return moved if moved.is_ending else moved._to(Phase.STARTING, wall, moved.reason)


def about_to_run(instance: ManagedInstance) -> ManagedInstance:
    """Note that a task's process is started now. An agent that finds this note never starts it again."""
    return replace(instance, has_run=True)


def ready(instance: ManagedInstance, wall: float) -> ManagedInstance:
    """Move to RUNNING: the health check answers 200."""
    if instance.phase is not Phase.STARTING or not instance.has_process:
        return instance
    return replace(instance, ready_at=wall)._to(Phase.RUNNING, wall, None)


def unready(instance: ManagedInstance, reason: str, *, now: float, wall: float) -> ManagedInstance:
    """Move back to STARTING: the health check no longer answers 200, but the process runs."""
    if instance.phase is Phase.STARTING and instance.reason != WAITING + reason:
        return replace(instance, reason=(WAITING + reason)[:REASON_LIMIT])
    if instance.phase is not Phase.RUNNING:
        return instance
    moved = replace(instance, ready_at=None, waiting_since=now)
    return moved._to(Phase.STARTING, wall, WAITING + reason)


def ended(
    instance: ManagedInstance,
    category: Category,
    reason: str,
    *,
    now: float,
    wall: float,
    cause: Cause | None = None,
    final: bool = False,
    gone: bool = True,
) -> ManagedInstance:
    """Record the end of the process: complete, schedule a restart, or fail after too many."""
    if not gone:
        if instance.is_ending:
            return instance
        if instance.is_task and instance.exit_code == 0:
            return instance._to(Phase.COMPLETED, wall, None)
        return _failed(instance, category, reason, wall, cause)
    return _ended(instance, category, reason, now=now, wall=wall, cause=cause, final=final)


def _ended(
    instance: ManagedInstance,
    category: Category,
    reason: str,
    *,
    now: float,
    wall: float,
    cause: Cause | None,
    final: bool,
) -> ManagedInstance:
    gone = replace(instance, has_process=False, pid=None, health_port=None)
    if instance.is_final:
        return gone
    if instance.is_task and instance.exit_code == 0:
        return gone._to(Phase.COMPLETED, wall, None)
    if instance.phase is Phase.TERMINATING:
        return gone._to(Phase.COMPLETED, wall, instance.reason)
    if instance.give_up_reason is not None:
        return _failed(gone, Category.NOT_READY, f"{instance.give_up_reason}\n{reason}", wall)
    if final:
        return _failed(gone, category, reason, wall, cause)
    failures = RESTARTS.failures_after(instance.failures, now - instance.launched_at)
    gone = replace(gone, failures=failures, retry_at=now + RESTARTS.delay(failures), ready_at=None)
    if failures >= RESTART_LIMIT:
        return _failed(gone, category, reason, wall, cause)
    return gone._to(Phase.CREATING, wall, reason)


def not_launched(
    instance: ManagedInstance, reason: str, *, now: float, wall: float, final: bool = False
) -> ManagedInstance:
    """Record a start that the function's settings prevent, as a process that ended at once."""
    instance, cause = replace(instance, launched_at=now), Cause.CREATE_CONTAINER_ERROR
    return ended(instance, Category.CRASH, reason, now=now, wall=wall, cause=cause, final=final)


def rejected(instance: ManagedInstance, category: Category, reason: str, wall: float) -> ManagedInstance:
    """Fail an instance that the backend refuses to run."""
    if instance.is_ending:
        return instance
    return _failed(instance, category, reason, wall)


def terminating(
    instance: ManagedInstance, reason: str, grace: float, wall: float, cause: Cause = Cause.BY_USER
) -> ManagedInstance:
    """Move to TERMINATING. A second order can only shorten the grace period; the first cause stays."""
    if instance.is_final:
        return instance
    if instance.phase is Phase.TERMINATING:
        left = max(0.0, instance.grace - (wall - (instance.draining_since or wall)))
        return replace(instance, grace=grace, draining_since=wall) if grace < left else instance
    moved = replace(instance, grace=max(0.0, grace), draining_since=wall, cause=cause)
    return moved._to(Phase.TERMINATING, wall, reason)


def given_up(instance: ManagedInstance, give_up_reason: str) -> ManagedInstance:
    """Note why the process is ended, since its exit code does not show that."""
    return replace(instance, give_up_reason=give_up_reason)


def completed(instance: ManagedInstance, wall: float) -> ManagedInstance:
    """Complete a terminating instance of which nothing runs."""
    if instance.phase is not Phase.TERMINATING or instance.has_process:
        return instance
    return instance._to(Phase.COMPLETED, wall, instance.reason)


def interrupted(instance: ManagedInstance, reason: str, wall: float) -> ManagedInstance:
    """Record that the process ended with the agent; the next agent starts it again."""
    if instance.is_ending:
        return replace(instance, has_process=False, pid=None)
    moved = replace(instance, has_process=False, pid=None, health_port=None, retry_at=0.0, ready_at=None)
    phase = Phase.PENDING if instance.phase is Phase.PENDING else Phase.CREATING
    return moved._to(phase, wall, None if phase is Phase.PENDING else WAITING + reason)


def taken_over(
    instance: ManagedInstance, *, pid: int | None, is_ready: bool | None, now: float, wall: float
) -> ManagedInstance:
    """Take over a running instance that an earlier agent started. `is_ready`: None if that is unknown."""
    moved = replace(instance, has_process=True, has_run=True, pid=pid, waiting_since=now, launched_at=now)
    if moved.phase in (Phase.PENDING, Phase.CREATING):
        moved = moved._to(Phase.STARTING, wall, None)
    if is_ready is None:
        return moved
    return ready(moved, wall) if is_ready else unready(moved, "not ready", now=now, wall=wall)


def lost(instance: ManagedInstance, reason: str, wall: float) -> ManagedInstance:
    """Fail an instance that is gone and is not started again."""
    gone = replace(instance, has_process=False, pid=None, health_port=None)
    return gone if gone.is_ending else _failed(gone, Category.LOST, reason, wall)


def observed(instance: ManagedInstance, event: Observed) -> ManagedInstance:
    """Take over what the backend sees."""
    share = replace(instance.share, node=event.node)
    return replace(
        instance, share=share, ips=event.ips, restarts=event.restarts, why_restarted=event.why_restarted
    )


def deleted(instance: ManagedInstance, *, now: float, wall: float) -> ManagedInstance:
    """Record that nothing of an instance is left after its deletion."""
    reason = "it was deleted"
    return ended(instance, Category.UNKNOWN, reason, now=now, wall=wall, final=True)


def after_event(instance: ManagedInstance, event: Event, *, now: float, wall: float) -> ManagedInstance:
    """Return the instance after an event of its backend."""
    match event:
        case Ready():
            return ready(instance, wall)
        case Unready(_, reason):
            return unready(instance, reason, now=now, wall=wall)
        case Ended(_, reason, category, cause, final, gone, exit_code, runs):
            final = final or instance.is_task
            if instance.is_task and not instance.is_final:
                instance = replace(instance, exit_code=exit_code, grace=_last_grace(instance, runs))
            return ended(instance, category, reason, now=now, wall=wall, cause=cause, final=final, gone=gone)
        case Observed():
            return observed(instance, event)
        case Progress(_, part, at):
            return replace(instance, parts=(*instance.parts, (part, at)))


def _last_grace(instance: ManagedInstance, runs: bool) -> float:
    """Return the seconds that what is left of a task gets: the task, its worker, and uploads of results."""
    if instance.is_ending:
        return instance.grace
    uploads = instance.order.launch_specification.result_handling_strategy == ResultHandling.UPLOAD
    own = orders.grace(instance.order, WORKER_GRACE_SECONDS)
    return own if runs or uploads else WORKER_GRACE_SECONDS


def after_failed_start(
    instance: ManagedInstance,
    error: StartError | LaunchError | Refused,
    *,
    now: float,
    wall: float,
    restarts: bool = True,
) -> ManagedInstance:
    """Return the instance after a failed start: retried soon, retried as after a crash, or never.

    Without `restarts` a crash is not retried.
    """
    match error:
        case StartError():
            return postponed(instance, str(error), now=now, wall=wall)
        case LaunchError():
            return not_launched(instance, str(error), now=now, wall=wall, final=not restarts)
        case _:
            return rejected(instance, Category.UNSUPPORTED, str(error), wall)
