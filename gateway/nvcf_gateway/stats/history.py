"""One replica's calls of the last 15 minutes, in steps of five seconds. Pure: the time is passed in.

Steps are numbered by Unix time, so that those of several replicas can be added. A step without events does
not exist. How many requests waited at the end of a step follows from how many wait now, and from the
arrivals and departures since.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

STEP_SECONDS = 5
STEPS = 180
MAX_VERSIONS = 1000
# Two bounds per octave from 1 ms to over an hour: a percentile is at most 41 % off, mostly far less. Anything
# faster than 0.7 ms counts as 0.7 ms.
BOUNDS = tuple(0.001 * 2 ** (exponent / 2) for exponent in range(45))
"""Upper bounds of the latency buckets in seconds; one more bucket is for the rest."""


def step_at(now: float) -> int:
    """Return the number of the step of a time (Unix seconds)."""
    return int(now // STEP_SECONDS)


@dataclass(slots=True)
class Step:
    """Counts of one step. `left` counts all calls that ceased to wait, for any reason."""

    arrivals: int = 0
    left: int = 0
    answered: int = 0
    failed: int = 0
    latencies: dict[int, int] = field(default_factory=dict)

    def add(self, other: Step) -> None:
        """Add the counts of another step."""
        self.arrivals += other.arrivals
        self.left += other.left
        self.answered += other.answered
        self.failed += other.failed
        for bucket, count in other.latencies.items():
            self.latencies[bucket] = self.latencies.get(bucket, 0) + count

    def to_list(self) -> list[int]:
        """Return the compact form: the four counts, then pairs of bucket and count."""
        pairs = [number for pair in sorted(self.latencies.items()) for number in pair]
        return [self.arrivals, self.left, self.answered, self.failed, *pairs]

    @classmethod
    def from_list(cls, numbers: list[int]) -> Step:
        """Read the compact form. Raises ValueError and TypeError."""
        arrivals, left, answered, failed, *pairs = (int(number) for number in numbers)
        latencies = dict(zip(pairs[::2], pairs[1::2], strict=True))
        if not all(0 <= bucket <= len(BOUNDS) for bucket in latencies):
            raise ValueError("no such latency bucket")
        return cls(arrivals, left, answered, failed, latencies)


@dataclass
class _Version:
    waiting: int = 0
    steps: dict[int, Step] = field(default_factory=dict)

    def step(self, number: int) -> Step:
        found = self.steps.get(number)
        if found is None:
            found = self.steps[number] = Step()
            if len(self.steps) > STEPS:
                del self.steps[next(iter(self.steps))]
        return found


class History:
    """Calls of each version at this replica since `since`; times are Unix seconds."""

    def __init__(self, since: float) -> None:
        self.since = since
        self._versions: dict[str, _Version] = {}

    def arrived(self, version_id: str, now: float) -> None:
        """Count a call that waits from now on."""
        version = self._versions.pop(version_id, None)
        if version is None:
            self._make_room()
            version = _Version()
        # Moved to the end: the order is that of the last arrivals.
        self._versions[version_id] = version
        version.waiting += 1
        version.step(step_at(now)).arrivals += 1

    def left(self, version_id: str, now: float, seconds: float | None, *, failed: bool) -> None:
        """Count a call that ceases to wait; `seconds` is the time to its response, None if it got none."""
        version = self._versions.get(version_id)
        if version is None:
            return
        version.waiting -= 1
        step = version.step(step_at(now))
        step.left += 1
        step.failed += failed
        if seconds is not None:
            step.answered += 1
            bucket = bisect_left(BOUNDS, seconds)
            step.latencies[bucket] = step.latencies.get(bucket, 0) + 1

    def waiting(self, version_id: str) -> int:
        """Return how many calls of a version wait here now."""
        version = self._versions.get(version_id)
        return 0 if version is None else version.waiting

    def after(self, version_id: str, number: int) -> Iterable[tuple[int, Step]]:
        """Return a version's steps with numbers above `number`, oldest first."""
        version = self._versions.get(version_id)
        if version is None:
            return ()
        return [(each, step) for each, step in version.steps.items() if each > number]

    def _make_room(self) -> None:
        """Drop the versions that were not called for longest, except those with waiting calls."""
        excess = len(self._versions) - MAX_VERSIONS + 1
        if excess <= 0:
            return
        idle = (key for key, version in self._versions.items() if version.waiting == 0)
        for key in list(islice(idle, excess)):
            del self._versions[key]


def percentile(latencies: dict[int, int], share: float) -> float | None:
    """Return the latency in seconds that the `share` (0..1) of the calls did not exceed; None without calls.

    Calls are assumed to be spread evenly inside a bucket, on a logarithmic scale.
    """
    total = sum(latencies.values())
    if total == 0:
        return None
    rank, before = share * total, 0
    for bucket, count in sorted(latencies.items()):
        if before + count >= rank:
            low = BOUNDS[bucket - 1] if bucket else BOUNDS[0] / 2**0.5
            high = BOUNDS[min(bucket, len(BOUNDS) - 1)]
            return float(low * (high / low) ** ((rank - before) / count)) if high > low else high
        before += count
    return BOUNDS[-1]
