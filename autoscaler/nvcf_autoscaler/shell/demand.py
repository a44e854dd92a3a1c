"""Demand of a version: counters that only grow, out of what the queue and the gateways say. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

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
