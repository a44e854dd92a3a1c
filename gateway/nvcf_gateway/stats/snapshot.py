"""Snapshots of histories, and their JSON form for other replicas and for callers. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Self

from nvcf_gateway.errors import GatewayError
from nvcf_gateway.stats.history import STEP_SECONDS, STEPS, History, Step, percentile, step_at

WINDOW_STEPS = 12
"""Rates and percentiles of a version cover the last minute."""
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class InvalidSnapshot(GatewayError):
    """The snapshot of another replica cannot be read."""


@dataclass
class Recent:
    """One version: calls that wait now, and the sum of the last minute."""

    waiting: int = 0
    window: Step = field(default_factory=Step)

    def add(self, other: Recent) -> None:
        """Add the counts of another replica."""
        self.waiting += other.waiting
        self.window.add(other.window)


@dataclass
class Snapshot:
    """Counts of some versions at some replicas; `since` is when the last of them started."""

    since: float = 0.0
    versions: dict[str, Recent] = field(default_factory=dict)
    steps: dict[int, Step] = field(default_factory=dict)
    """All versions together."""

    def add_history(self, history: History, version_id: str, now: float) -> None:
        """Add one version of a history."""
        newest = step_at(now)
        recent = self.versions[version_id] = Recent(history.waiting(version_id))
        for number, step in history.after(version_id, newest - STEPS):
            self.steps.setdefault(number, Step()).add(step)
            if number > newest - WINDOW_STEPS:
                recent.window.add(step)

    def add(self, other: Snapshot) -> None:
        """Add the counts of another replica."""
        self.since = max(self.since, other.since)
        for version_id, recent in other.versions.items():
            self.versions.setdefault(version_id, Recent()).add(recent)
        for number, step in other.steps.items():
            self.steps.setdefault(number, Step()).add(step)

    def to_json(self) -> bytes:
        """Return the form for other replicas; versions without counts are left out."""
        known = {
            version_id: [recent.waiting, *recent.window.to_list()]
            for version_id, recent in self.versions.items()
            if recent.waiting or recent.window.left or recent.window.arrivals
        }
        steps = [[number, *step.to_list()] for number, step in sorted(self.steps.items())]
        return json.dumps(
            {"since": self.since, "versions": known, "steps": steps}, separators=(",", ":")
        ).encode()

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read the form of `to_json`. Raises InvalidSnapshot."""
        try:
            value = json.loads(body)
            versions = {
                str(version_id): Recent(int(numbers[0]), Step.from_list(numbers[1:]))
                for version_id, numbers in value["versions"].items()
            }
            steps = {int(numbers[0]): Step.from_list(numbers[1:]) for numbers in value["steps"]}
            return cls(float(value["since"]), versions, steps)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise InvalidSnapshot(f"cannot read the snapshot of another gateway: {error}") from error


def series_json(steps: dict[int, Step], waiting: int, since: float, now: float) -> list[dict[str, Any]]:
    """Return the complete steps that began after `since`, oldest first; rates are per second.

    `waiting` is how many calls wait now.
    """
    newest = step_at(now)
    shown = []
    current = steps.get(newest, Step())
    waiting -= current.arrivals - current.left
    for number in range(newest - 1, max(newest - STEPS, step_at(since)), -1):
        step = steps.get(number, Step())
        shown.append({"at": number * STEP_SECONDS, **_rates(step, STEP_SECONDS), "waiting": max(0, waiting)})
        waiting -= step.arrivals - step.left
    return shown[::-1]


def recent_json(recent: Recent, since: float, now: float) -> dict[str, Any]:
    """Return the rates of a version over the last minute, or since `since` if that is later."""
    begin = (step_at(now) - WINDOW_STEPS + 1) * STEP_SECONDS
    return {"waiting": recent.waiting, **_rates(recent.window, max(1.0, now - max(begin, since)))}


def _rates(step: Step, seconds: float) -> dict[str, Any]:
    return {
        "arrivalsPerSecond": round(step.arrivals / seconds, 3),
        "answersPerSecond": round(step.answered / seconds, 3),
        "failuresPerSecond": round(step.failed / seconds, 3),
        "latency": latency_json(step.latencies),
    }


def latency_json(latencies: dict[int, int]) -> dict[str, float] | None:
    """Return percentiles in seconds; None without responses."""
    found = {name: percentile(latencies, share) for name, share in SHARES.items()}
    return {name: round(value, 6) for name, value in found.items() if value is not None} or None
