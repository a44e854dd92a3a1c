"""Demand of a version, added up over gateways that come, go and start again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvcf_proto.compute import DemandReport


@dataclass
class VersionDemand:
    """Counters that only grow, whatever happens to single gateways."""

    arrivals: int = 0
    completions: int = 0
    demand_seconds: float = 0.0
    _last: dict[str, DemandReport] = field(default_factory=dict)

    def take(self, report: DemandReport) -> None:
        """Add what is new in a gateway's report; an older report than the last one says nothing."""
        last = self._last.get(report.gateway_id)
        if last is not None and report.at <= last.at:
            return
        self._last[report.gateway_id] = report
        restarted = last is None or report.arrivals < last.arrivals
        if last is None or restarted:
            self.arrivals += report.arrivals
            self.completions += report.completions
            self.demand_seconds += report.busy_seconds
            return
        self.arrivals += report.arrivals - last.arrivals
        self.completions += max(0, report.completions - last.completions)
        self.demand_seconds += max(0.0, report.busy_seconds - last.busy_seconds)

    def at_least(self, arrivals: int) -> None:
        """The queue has seen this many: reports are a second late, and none comes of a dead gateway."""
        self.arrivals = max(self.arrivals, arrivals)


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
