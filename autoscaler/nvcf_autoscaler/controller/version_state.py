"""What the controller remembers of one version between two reconciles. Losing it costs only efficiency."""

from __future__ import annotations

from dataclasses import dataclass, field

from opentelemetry.trace import SpanContext

from nvcf_autoscaler.controller.queues import QueueAge
from nvcf_autoscaler.policy.observation import Activity
from nvcf_autoscaler.policy.state import PolicyState
from nvcf_proto.compute import DemandReport

# A version that is woken again and again is reconciled this often.
MIN_RECONCILE_INTERVAL = 0.05
MAX_LINKS = 16


@dataclass
class Arrivals:
    """Count all requests ever queued, from samples of how many the queue has stored.

    The queue's number is exact and outlives gateways. It falls when requests are cancelled before they were
    delivered, or when the queue is created again. What it holds at the first sample counts once.
    """

    count: int = 0
    _last: int = 0

    def sample(self, stored: int) -> None:
        """Add one sample of the queue."""
        self.count += max(0, stored - self._last)
        self._last = stored


@dataclass
class GatewayTime:
    """Integral over time of the requests that wait at gateways, which come, go and restart."""

    seconds: float = 0.0
    _last: dict[str, DemandReport] = field(default_factory=dict)

    def add(self, report: DemandReport) -> None:
        """Add what is new in a gateway's report. Reports older than its last one are ignored."""
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
        """Add one sample. The values of the last one count until now."""
        if self._at is not None:
            passed = max(0.0, now - self._at)
            self.busy_seconds += self._in_flight * passed
            self.slot_seconds += self._slots * passed
        self._at, self._in_flight, self._slots = now, in_flight, slots


@dataclass
class VersionState:
    """State of one version. Instants are Unix seconds.

    - `announced` are the instance counts and the lack of capacity last announced.
    - `lacking`: so many instances found no room. `last_refusal` and `last_problem` are the last texts
      about that, and about settings or starts that fail.
    - `cold_start_at` is since when requests have met no instance, `cold_start_traces` the traces of some of
      them.
    - `gpu_time_until` is the instant up to which its instances' GPU time has been counted.
    """

    known_since: float = 0.0
    arrivals: Arrivals = field(default_factory=Arrivals)
    gateways: GatewayTime = field(default_factory=GatewayTime)
    slots: SlotTime = field(default_factory=SlotTime)
    policy_state: PolicyState = field(default_factory=PolicyState)
    activity: Activity = field(default_factory=Activity)
    startups: dict[str, float] = field(default_factory=dict)
    woken: bool = False
    reconcile_at: float = 0.0
    reconciled_at: float = 0.0
    undeployed_since: float | None = None
    announced: tuple[tuple[tuple[str, int], ...], int] | None = None
    lacking: int = 0
    last_refusal: str = ""
    last_problem: str = ""
    cold_start_at: float | None = None
    cold_start_traces: list[SpanContext] = field(default_factory=list)
    queue_ages: dict[str, QueueAge] = field(default_factory=dict)
    gpu_time_until: float | None = None

    def cold_start(self, now: float, by: SpanContext | None) -> None:
        """Note that a request, part of the trace `by`, has met no instance."""
        if self.cold_start_at is None:
            self.cold_start_at = now
        if by is not None and by.trace_flags.sampled and len(self.cold_start_traces) < MAX_LINKS:
            self.cold_start_traces.append(by)

    def cold_start_handled(self) -> None:
        """Forget the requests that met no instance: instances are on their way, or there are some."""
        self.cold_start_at = None
        self.cold_start_traces.clear()

    def gained_leadership(self) -> None:
        """Forget what the leader until now has counted and handled."""
        self.gpu_time_until = None
        self.cold_start_handled()

    @property
    def due_at(self) -> float:
        """When the version is to be reconciled."""
        if not self.woken:
            return self.reconcile_at
        return min(self.reconcile_at, self.reconciled_at + MIN_RECONCILE_INTERVAL)
