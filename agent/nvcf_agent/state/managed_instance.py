"""An instance of the agent and its phases. See transitions.py for what moves it on."""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Self

from nvcf_agent.state import order as orders
from nvcf_agent.state.inventory import Share
from nvcf_proto.icms.causes import CHART_PULL, INVALID_CHART, Cause
from nvcf_proto.icms.messages import CreationMessage, instance_id_of
from nvcf_proto.icms.names import Workload
from nvcf_proto.icms.reports import InstanceState

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
    """Why an instance failed, more exactly than NVIDIA's causes say it."""

    UNSUPPORTED = "unsupported"
    INVALID_CHART = INVALID_CHART
    CRASH = "crash"
    UNHEALTHY = "unhealthy"
    OUT_OF_MEMORY = "out-of-memory"
    NOT_READY = "not-ready"
    CAPACITY = "capacity"
    CREATE_CONTAINER = "create_container"
    IMAGE_PULL = "image_pull"
    CHART_PULL = CHART_PULL
    INIT_STUCK = "init_stuck"
    ADMISSION = "admission"
    EVICTED = "evicted"
    NODE_LOST = "node_lost"
    LOST = "lost"
    UNKNOWN = "unknown"


FINAL = frozenset({Phase.COMPLETED, Phase.FAILED})


@dataclass(frozen=True)
class ManagedInstance:
    """One instance of the agent: the `index`-th of the request that its creation message `order` made.

    A task's instance runs once: its process is never started again, and its `exit_code` says how it ended.

    The first block of fields is persisted, the second belongs to the running agent. `acknowledged`: the
    control plane has answered the acknowledgement of its request, so it may start. `cause` is why it ends.
    `held` are the requests that it held at its end, `reported` the last state that the control plane took.
    """

    order: CreationMessage
    phase: Phase
    created_at: float
    updated_at: float
    index: int = 0
    share: Share = NOTHING
    acknowledged: bool = False
    category: Category | None = None
    cause: Cause | None = None
    reason: str | None = None
    restarts: int = 0
    has_run: bool = False
    log_path: str | None = None
    ready_at: float | None = None
    draining_since: float | None = None
    grace: float = DEFAULT_GRACE_SECONDS
    cleaned: bool = False
    held: tuple[str, ...] = ()
    reported: InstanceState | None = None
    exit_code: int | None = None

    has_process: bool = False
    pid: int | None = None
    health_port: int | None = None
    failures: int = 0
    postponements: int = 0
    launched_at: float = 0.0
    waiting_since: float = 0.0
    ips: tuple[str, ...] = ()
    parts: tuple[tuple[str, float], ...] = ()
    why_restarted: str = ""
    retry_at: float = 0.0
    give_up_reason: str | None = None

    @cached_property
    def id(self) -> str:
        """Id of the instance, in NVIDIA's form."""
        return instance_id_of(self.order.request_id, self.index, self.order.workload)

    @property
    def request_id(self) -> str:
        """Id of its request."""
        return self.order.request_id

    @property
    def is_task(self) -> bool:
        """Whether it is of a task."""
        return self.order.workload is Workload.TASK

    @property
    def version_id(self) -> str:
        """Id of its function version."""
        return orders.version_id(self.order)

    @property
    def function_name(self) -> str:
        """Name of its function."""
        return orders.function_name(self.order)

    @property
    def part_seconds(self) -> dict[str, float]:
        """Seconds of each part of its start that is over, from the message on."""
        before = self.order.issued_at or self.created_at
        result: dict[str, float] = {}
        for part, at in self.parts:
            result[part] = round(max(0.0, at - before), 3)
            before = max(before, at)
        return result

    @property
    def is_final(self) -> bool:
        """Whether the instance has ended."""
        return self.phase in FINAL

    @property
    def is_ending(self) -> bool:
        """Whether the instance ends or has ended."""
        return self.phase is Phase.TERMINATING or self.is_final

    @property
    def is_over(self) -> bool:
        """Whether nothing of the instance is left but its last report."""
        return self.is_final and not self.has_process and self.cleaned

    @property
    def held_share(self) -> Share:
        """The instance's present share of the cluster's inventory."""
        return NOTHING if self.is_final and not self.has_process else self.share

    def _to(self, phase: Phase, wall: float, reason: str | None) -> Self:
        text = reason[:REASON_LIMIT] if reason else None
        return replace(self, phase=phase, updated_at=wall, reason=text)
