"""What is remembered of one version between looks. Lost with the process: that costs only efficiency."""

from __future__ import annotations

from dataclasses import dataclass, field

from opentelemetry.trace import SpanContext

from nvcf_autoscaler.controller.queues import QueueAge
from nvcf_autoscaler.policy.observation import Activity
from nvcf_autoscaler.policy.state import Memory
from nvcf_proto.compute import DemandReport


@dataclass
class Arrivals:
    """Requests that ever came, from samples of how many the queue has stored.

    The queue's number is exact and not late, and it outlives gateways; it falls when requests are cancelled
    before they were delivered, or when the queue is made anew. What it had before the first sample counts
    once.
    """

    count: int = 0
    _last: int | None = None

    def sample(self, stored: int) -> None:
        """One look at the queue."""
        self.count += max(0, stored - (0 if self._last is None else self._last))
        self._last = stored


@dataclass
class GatewayTime:
    """Integral over time of requests that wait at gateways, which come, go and start again."""

    seconds: float = 0.0
    _last: dict[str, DemandReport] = field(default_factory=dict)

    def take(self, report: DemandReport) -> None:
        """Add what is new in a gateway's report; an older report than the last one says nothing."""
        last = self._last.get(report.gateway_id)
        if last is not None and report.at <= last.at:
            return
        self._last[report.gateway_id] = report
        if last is not None:
            restarted = report.arrivals < last.arrivals or report.busy_seconds < last.busy_seconds
            self.seconds += report.busy_seconds - (0.0 if restarted else last.busy_seconds)


@dataclass
class SlotTime:
    """Integrals over time of requests in flight and of running slots, from samples."""

    busy_seconds: float = 0.0
    slot_seconds: float = 0.0
    _at: float | None = None
    _in_flight: int = 0
    _slots: int = 0

    def sample(self, now: float, in_flight: int, slots: int) -> None:
        """One look: what was seen last held until now."""
        if self._at is not None:
            passed = max(0.0, now - self._at)
            self.busy_seconds += self._in_flight * passed
            self.slot_seconds += self._slots * passed
        self._at, self._in_flight, self._slots = now, in_flight, slots


# A version that is woken again and again is looked at this often.
SHORTEST_BETWEEN_LOOKS = 0.05
MOST_LINKS = 16


@dataclass
class Watched:
    """Times are Unix seconds.

    `told` is what was last announced. `short`: some instances found no room. `refusal` and `trouble` are
    the last words about that, and about settings or starts that fail. `asked_at` and `asked_by`: since when
    requests have met no instance, and which traces some of them belong to. `held_until`: up to when its
    instances' GPU time has been counted.
    """

    known_since: float = 0.0
    arrivals: Arrivals = field(default_factory=Arrivals)
    gateways: GatewayTime = field(default_factory=GatewayTime)
    slots: SlotTime = field(default_factory=SlotTime)
    memory: Memory = field(default_factory=Memory)
    activity: Activity = field(default_factory=Activity)
    startups: dict[str, float] = field(default_factory=dict)
    woken: bool = False
    next_look: float = 0.0
    looked_at: float = 0.0
    undeployed_since: float | None = None
    told: tuple[tuple[tuple[str, int], ...], int] | None = None
    short: bool = False
    refusal: str = ""
    trouble: str = ""
    asked_at: float | None = None
    asked_by: list[SpanContext] = field(default_factory=list)
    ages: dict[str, QueueAge] = field(default_factory=dict)
    held_until: float | None = None

    def asked(self, now: float, by: SpanContext | None) -> None:
        """A request, part of the trace `by`, has met no instance."""
        if self.asked_at is None:
            self.asked_at = now
        if by is not None and by.trace_flags.sampled and len(self.asked_by) < MOST_LINKS:
            self.asked_by.append(by)

    def answered(self) -> None:
        """Something has been done about that."""
        self.asked_at = None
        self.asked_by.clear()

    def took_over(self) -> None:
        """Another replica led meanwhile: it has counted what was held, and answered who asked."""
        self.held_until = None
        self.answered()

    @property
    def due_at(self) -> float:
        """When the version is to be looked at."""
        return min(self.next_look, self.looked_at + SHORTEST_BETWEEN_LOOKS) if self.woken else self.next_look
