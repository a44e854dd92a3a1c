"""Observations of one function version: counters and instants, never rates.

Counters only grow, and the policy uses only their differences. An observation that is read twice or late is
therefore still correct. All times are seconds on the same clock as `now`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class SpecificationObservation:
    """Instances of one GPU specification.

    `starting` holds the creation instants of instances that are not ready yet, oldest first. `available` is
    the number of instances that could be placed now; None means unlimited. Draining and terminating instances
    are not counted.
    """

    id: str
    running: int = 0
    starting: tuple[float, ...] = ()
    available: int | None = None

    @property
    def total(self) -> int:
        """Running and starting instances."""
        return self.running + len(self.starting)


@dataclass(frozen=True, slots=True)
class Activity:
    """When a version last changed between idle (nothing queued, nothing in flight) and busy.

    `idle_since` is None while busy. `busy_since` is the start of the present or last busy period, and
    `idle_before` the length of the idle period that it ended (0 for the first one).
    """

    idle_since: float | None = None
    busy_since: float | None = None
    idle_before: float = 0.0

    def seen(self, now: float, busy: bool) -> Activity:
        """Return the activity after one more observation; `busy` is `queued + in_flight > 0`."""
        if busy and (self.idle_since is not None or self.busy_since is None):
            gap = 0.0 if self.idle_since is None or self.busy_since is None else now - self.idle_since
            return Activity(None, now, gap)
        if not busy and self.idle_since is None:
            return replace(self, idle_since=now)
        return self


@dataclass(frozen=True, slots=True)
class Observation:
    """One observation of a function version.

    `arrivals` and `completions` count requests. `busy_seconds` is the integral of requests in flight over
    time; with `completions`, Little's law gives the service time. `demand_seconds` (integral of queued + in
    flight) and `slot_seconds` (integral of running slots) are needed only to scale by utilisation or by a
    comparison policy. `recent_startups` are the last measured times from creation to ready, newest last.
    """

    arrivals: int
    completions: int
    busy_seconds: float
    queued: int
    in_flight: int
    specifications: tuple[SpecificationObservation, ...]
    activity: Activity = Activity()
    recent_startups: tuple[float, ...] = ()
    demand_seconds: float = 0.0
    slot_seconds: float = 0.0
