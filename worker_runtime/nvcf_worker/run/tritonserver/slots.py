"""How many requests a worker may have in flight for a model, by batches and statistics of Triton. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST = 256
"""Slots of a worker whose deployment says nothing else."""
SHORT_QUEUE = 0.0025
LONG_QUEUE = 0.005
"""Seconds in Triton's queue that do no harm however short an execution is."""
NANOSECONDS = 1e9


@dataclass(frozen=True, slots=True)
class Totals:
    """What a model has done since it was loaded. Durations are sums over requests, in seconds."""

    requests: int = 0
    failures: int = 0
    inferences: int = 0
    executions: int = 0
    duration: float = 0.0
    queue: float = 0.0
    compute_input: float = 0.0
    compute_infer: float = 0.0
    compute_output: float = 0.0
    batches: Mapping[int, int] = field(default_factory=dict)

    @property
    def compute(self) -> float:
        """Return the seconds of execution, with the copies before and after it."""
        return self.compute_input + self.compute_infer + self.compute_output

    def since(self, earlier: Totals) -> Totals:
        """Return what has been done since `earlier`; all of it when the model was loaded anew since."""
        if self.requests < earlier.requests or self.executions < earlier.executions:
            return self
        return Totals(
            self.requests - earlier.requests,
            max(0, self.failures - earlier.failures),
            max(0, self.inferences - earlier.inferences),
            self.executions - earlier.executions,
            max(0.0, self.duration - earlier.duration),
            max(0.0, self.queue - earlier.queue),
            max(0.0, self.compute_input - earlier.compute_input),
            max(0.0, self.compute_infer - earlier.compute_infer),
            max(0.0, self.compute_output - earlier.compute_output),
            {
                size: count - earlier.batches.get(size, 0)
                for size, count in self.batches.items()
                if count > earlier.batches.get(size, 0)
            },
        )


def totals_of(statistics: Mapping[str, Any]) -> Totals:
    """Return the totals of a model, all its versions together, from Triton's statistics."""
    versions = statistics.get("model_stats", ())
    inference = [each.get("inference_stats", {}) for each in versions]

    def count(name: str) -> int:
        return sum(int(each.get(name, {}).get("count", 0)) for each in inference)

    def seconds(name: str) -> float:
        return sum(int(each.get(name, {}).get("ns", 0)) for each in inference) / NANOSECONDS

    batches: dict[int, int] = {}
    for version in versions:
        for batch in version.get("batch_stats", ()):
            size = int(batch.get("batch_size", 0))
            batches[size] = batches.get(size, 0) + int(batch.get("compute_infer", {}).get("count", 0))
    return Totals(
        count("success"),
        count("fail"),
        sum(int(each.get("inference_count", 0)) for each in versions),
        sum(int(each.get("execution_count", 0)) for each in versions),
        seconds("success"),
        seconds("queue"),
        seconds("compute_input"),
        seconds("compute_infer"),
        seconds("compute_output"),
        batches,
    )


def first_slots(capacity: int, most: int = MOST) -> int:
    """Return the slots of a worker at its start: one set of full batches runs while the next one waits."""
    return max(1, min(most, 2 * capacity))


def next_slots(now: int, capacity: int, done: Totals, *, used: bool, most: int = MOST) -> int:
    """Return the number of slots after a time in which the model has done `done`.

    capacity: requests that run at the same time in full batches; there are never fewer slots. used: whether
    all slots were in use. Slots become fewer while requests wait in Triton for longer than two executions,
    where they are in memory only and no other instance can take them, and more while they hardly wait.
    """
    least = max(1, min(most, capacity))
    if done.requests <= 0:
        return max(least, min(most, now))
    queue, compute = done.queue / done.requests, done.compute / done.requests
    if queue > max(LONG_QUEUE, 2 * compute):
        now -= max(1, now // 4)
    elif used and queue < max(SHORT_QUEUE, compute / 2):
        now += max(1, now // 2)
    return max(least, min(most, now))
