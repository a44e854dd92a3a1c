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

from nvcf_agent.state.inventory import Share
from nvcf_proto.compute import CreationMessage
from nvcf_proto.models import Instance, InstanceState

REASON_LIMIT = 4000
NOTHING = Share()
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
        """Whether nothing more will happen."""
        return self.phase in FINAL

    @property
    def is_ending(self) -> bool:
        """Whether it is ending or has ended."""
        return self.phase is Phase.TERMINATING or self.is_final

    @property
    def held(self) -> Share:
        """What it takes of the cluster's inventory now."""
        return NOTHING if self.is_final and not self.has_process else self.share

    def _to(self, phase: Phase, wall: float, reason: str | None) -> Self:
        text = reason[:REASON_LIMIT] if reason else None
        return replace(self, phase=phase, updated_at=wall, reason=text)


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
