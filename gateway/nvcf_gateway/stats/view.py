"""Figures out of histories, and their form between replicas and for callers. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from nvcf_gateway.errors import GatewayError
from nvcf_gateway.stats.history import STEP_SECONDS, STEPS, History, Step, percentile, step_at

WINDOW_STEPS = 12
"""Rates and percentiles of a version are those of the last minute."""
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class InvalidFigures(GatewayError):
    """Another replica's figures cannot be read."""


@dataclass
class Recent:
    """One version: calls that wait now, and the last minute added up."""

    waiting: int = 0
    window: Step = field(default_factory=Step)

    def add(self, other: Recent) -> None:
        """Add another replica's."""
        self.waiting += other.waiting
        self.window.add(other.window)


@dataclass
class Figures:
    """What some replicas have seen of some versions; `since` is when the last of them began to look."""

    since: float = 0.0
    versions: dict[str, Recent] = field(default_factory=dict)
    steps: dict[int, Step] = field(default_factory=dict)
    """All those versions together."""

    def take(self, history: History, version_id: str, now: float) -> None:
        """Add what a history holds of one version."""
        newest = step_at(now)
        recent = self.versions[version_id] = Recent(history.waiting(version_id))
        for number, step in history.after(version_id, newest - STEPS):
            self.steps.setdefault(number, Step()).add(step)
            if number > newest - WINDOW_STEPS:
                recent.window.add(step)

    def add(self, other: Figures) -> None:
        """Add another replica's."""
        self.since = max(self.since, other.since)
        for version_id, recent in other.versions.items():
            self.versions.setdefault(version_id, Recent()).add(recent)
        for number, step in other.steps.items():
            self.steps.setdefault(number, Step()).add(step)

    def to_json(self) -> bytes:
        """Form between replicas; versions of which nothing is known are left out."""
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
        """Raises InvalidFigures."""
        try:
            value = json.loads(body)
            versions = {
                str(version_id): Recent(int(numbers[0]), Step.from_list(numbers[1:]))
                for version_id, numbers in value["versions"].items()
            }
            steps = {int(numbers[0]): Step.from_list(numbers[1:]) for numbers in value["steps"]}
            return cls(float(value["since"]), versions, steps)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise InvalidFigures(f"figures of another gateway cannot be read: {error}") from error


def shown_series(steps: dict[int, Step], waiting: int, since: float, now: float) -> list[dict[str, Any]]:
    """Complete steps, oldest first, that began after `since`; rates are per second.

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


def shown_recent(recent: Recent, since: float, now: float) -> dict[str, Any]:
    """A version's last minute, or what there is of it."""
    begin = (step_at(now) - WINDOW_STEPS + 1) * STEP_SECONDS
    return {"waiting": recent.waiting, **_rates(recent.window, max(1.0, now - max(begin, since)))}


def _rates(step: Step, seconds: float) -> dict[str, Any]:
    return {
        "arrivalsPerSecond": round(step.arrivals / seconds, 3),
        "answersPerSecond": round(step.answered / seconds, 3),
        "failuresPerSecond": round(step.failed / seconds, 3),
        "latency": shown_latency(step.latencies),
    }


def shown_latency(latencies: dict[int, int]) -> dict[str, float] | None:
    """Percentiles in seconds; None without answers."""
    found = {name: percentile(latencies, share) for name, share in SHARES.items()}
    return {name: round(value, 6) for name, value in found.items() if value is not None} or None


def counted(versions: Iterable[Recent]) -> int:
    """How many calls wait now, over versions."""
    return sum(each.waiting for each in versions)
