"""An instance of the agent, its phases, and its record. See transitions.py for what moves it on."""

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
    """State of an instance in its agent."""

    PENDING = "PENDING"
    CREATING = "CREATING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    TERMINATING = "TERMINATING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class Category(StrEnum):
    """Why an instance failed. The record's reason begins with it."""

    CAPACITY = "capacity"
    UNSUPPORTED = "unsupported"
    CRASH = "crash"
    UNHEALTHY = "unhealthy"
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
class ManagedInstance:
    """One instance of the agent. `order` is its creation message, for this instance alone.

    The first block of fields is persisted, the second belongs to the running agent. `published`: its record
    has been seen or written, so a missing record was removed.
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
    give_up_reason: str | None = None
    cleaned: bool = False

    @property
    def id(self) -> str:
        """Id of the instance."""
        return self.order.instance_ids[0]

    @property
    def is_final(self) -> bool:
        """Whether the instance has ended."""
        return self.phase in FINAL

    @property
    def is_ending(self) -> bool:
        """Whether the instance ends or has ended."""
        return self.phase is Phase.TERMINATING or self.is_final

    @property
    def held(self) -> Share:
        """The instance's present share of the cluster's inventory."""
        return NOTHING if self.is_final and not self.has_process else self.share

    def _to(self, phase: Phase, wall: float, reason: str | None) -> Self:
        text = reason[:REASON_LIMIT] if reason else None
        return replace(self, phase=phase, updated_at=wall, reason=text)


def instance_record(instance: ManagedInstance) -> Instance:
    """Return the record for the instances bucket. The reason of a FAILED one is `CATEGORY: text`."""
    order, reason = instance.order, instance.reason
    category = instance.category if instance.phase is Phase.FAILED else None
    if category is not None:
        reason = f"{category}: {reason or 'no reason known'}"
    return Instance(
        id=instance.id,
        function_id=order.function_id,
        version_id=order.version_id,
        cluster_id=order.cluster_id,
        state=_STATES[instance.phase],
        updated_at=instance.updated_at,
        created_at=instance.created_at,
        pid=instance.pid,
        restarts=instance.restarts,
        reason=reason,
        log_path=instance.log_path,
        health_port=instance.health_port,
        ready_at=instance.ready_at,
        specification_id=order.specification_id,
        gpu=order.gpu,
        visible_devices=instance.share.visible_devices,
        draining_since=instance.draining_since,
        category=category.value if category is not None else None,
    )
