"""The states of one requested instance and what moves it from one to the next. Pure; times are passed in.

    PENDING -> CREATING -> STARTING -> RUNNING -> TERMINATING -> COMPLETED
                  ^           |  ^        |
                  |           v  |        v        (not ready any more: back to STARTING)
                  +-- its process ended: again, a few times, then FAILED with a category and a text

FAILED and COMPLETED are final. `now` is in seconds of a monotonic clock, `wall` Unix time.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from nvcf_agent.inventory import Share
from nvcf_broker.process import RestartPolicy
from nvcf_proto.compute import CreationMessage
from nvcf_proto.models import Instance, InstanceState

RESTARTS = RestartPolicy(initial=0.5, factor=2.0, maximum=30.0, stable_after=30.0)
RESTART_LIMIT = 6
# Not the function's fault: the gateway is starting or away, and answers again as soon as it is there.
POSTPONEMENTS = RestartPolicy(initial=0.2, factor=2.0, maximum=3.0, stable_after=0.0)
SHORTEST_POSTPONEMENT = 0.2
REASON_LIMIT = 4000
NOTHING = Share()
WAITING = "waiting: "
DEFAULT_GRACE_SECONDS = 30.0


class Phase(StrEnum):
    """Where a request is on its way."""

    PENDING = "PENDING"
    CREATING = "CREATING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    TERMINATING = "TERMINATING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class Category(StrEnum):
    """Why a request failed; the record's reason begins with it."""

    CAPACITY = "capacity"
    UNSUPPORTED = "unsupported"
    CRASH = "crash"
    OUT_OF_MEMORY = "out-of-memory"
    NOT_READY = "not-ready"


FINAL = frozenset({Phase.COMPLETED, Phase.FAILED})

_STATES = {
    Phase.PENDING: InstanceState.PENDING,
    Phase.CREATING: InstanceState.STARTING,
    Phase.STARTING: InstanceState.STARTING,
    Phase.RUNNING: InstanceState.RUNNING,
    Phase.TERMINATING: InstanceState.TERMINATING,
    Phase.COMPLETED: InstanceState.COMPLETED,
    Phase.FAILED: InstanceState.FAILED,
}


@dataclass(frozen=True)
class Request:
    """One instance as its agent knows it. `order` is its creation message, for this instance alone.

    The first block is remembered over restarts of the agent, the second is known to the running one only.
    `published`: its record has been seen or written, so that a missing one was removed by somebody.
    """

    order: CreationMessage
    phase: Phase
    created_at: float
    updated_at: float
    share: Share = NOTHING
    category: Category | None = None
    reason: str | None = None
    restarts: int = 0
    has_run: bool = False
    log_path: str | None = None
    ready_at: float | None = None
    draining_since: float | None = None
    grace: float = DEFAULT_GRACE_SECONDS
    published: bool = False

    has_process: bool = False
    pid: int | None = None
    health_port: int | None = None
    failures: int = 0
    postponements: int = 0
    launched_at: float = 0.0
    waiting_since: float = 0.0
    retry_at: float = 0.0
    verdict: str | None = None
    cleaned: bool = False

    @property
    def id(self) -> str:
        """The instance's id."""
        return self.order.instance_ids[0]

    @property
    def is_final(self) -> bool:
        return self.phase in FINAL

    @property
    def is_ending(self) -> bool:
        return self.phase is Phase.TERMINATING or self.is_final

    @property
    def held(self) -> Share:
        """What it takes of the cluster's inventory now."""
        return NOTHING if self.is_final and not self.has_process else self.share

    def _to(self, phase: Phase, wall: float, reason: str | None) -> Self:
        text = reason[:REASON_LIMIT] if reason else None
        return replace(self, phase=phase, updated_at=wall, reason=text)


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


def instance_record(request: Request) -> Instance:
    """The record in the instances bucket. A FAILED one's reason is `CATEGORY: text`."""
    order, reason = request.order, request.reason
    category = request.category if request.phase is Phase.FAILED else None
    if category is not None:
        reason = f"{category}: {reason or 'no reason known'}"
    return Instance(
        id=request.id,
        function_id=order.function_id,
        version_id=order.version_id,
        cluster_id=order.cluster_id,
        state=_STATES[request.phase],
        updated_at=request.updated_at,
        created_at=request.created_at,
        pid=request.pid,
        restarts=request.restarts,
        reason=reason,
        log_path=request.log_path,
        health_port=request.health_port,
        ready_at=request.ready_at,
        specification_id=order.specification_id,
        gpu=order.gpu,
        visible_devices=request.share.visible_devices,
        draining_since=request.draining_since,
        category=category.value if category is not None else None,
    )
