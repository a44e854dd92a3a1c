"""Simulated functions with their arrivals, start-up times and specifications. Times are seconds."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from nvcf_autoscaler.errors import InvalidTrace


def generator(*parts: object) -> random.Random:
    """Return a random generator that depends only on these parts, on every machine."""
    return random.Random("/".join(str(part) for part in parts))  # noqa: S311 (a simulation, no secret)


@dataclass(frozen=True, slots=True)
class StartupTimes:
    """Log-normal times from creation to ready; `sigma` 0 makes them constant.

    An instance beyond the most that there ever were takes `pull` seconds more: its node has no image yet. One
    beyond the first `nodes` takes `provision` seconds more: there is no node for it.
    """

    median: float = 30.0
    sigma: float = 0.25
    pull: float = 0.0
    provision: float = 0.0
    nodes: int = 0

    def draw(self, *parts: object) -> Iterator[float]:
        """Yield start-up times that depend only on the parts. The n-th start takes the n-th of them."""
        rng = generator(*parts)
        while True:
            yield self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0)) if self.sigma else self.median

    def delay(self, instances: int, most: int) -> float:
        """Return the seconds that the image and the node of the last of `instances` take; `most`: ever."""
        return self.pull * (instances > most) + self.provision * (instances > self.nodes)


@dataclass(frozen=True, slots=True)
class SimulatedSpecification:
    """One GPU specification of a simulated function. Each instance takes `gpus`."""

    id: str = "gpu"
    max_instances: int = 16
    min_instances: int = 0
    max_request_concurrency: int = 1
    gpus: int = 1
    startup: StartupTimes = field(default_factory=StartupTimes)


@dataclass(frozen=True)
class SimulatedFunction:
    """One function and all its requests: `arrivals` in rising order, `durations` of the same length.

    With `callers`, so many callers send them in turn and wait for the answer: each request but a caller's
    first one comes as long after the answer to the one before as it would if no request ever waited.
    """

    name: str
    arrivals: array[float]
    durations: array[float]
    horizon: float
    specifications: tuple[SimulatedSpecification, ...] = (SimulatedSpecification(),)
    family: str = "trace"
    wait_slo: float = 5.0
    callers: int = 0

    def __post_init__(self) -> None:
        if len(self.arrivals) != len(self.durations):
            raise InvalidTrace(f"{self.name}: as many arrivals as durations are needed")


@dataclass(frozen=True)
class FunctionResult:
    """Result of one policy on one function. `waits[i]` is of request i; `changes` are (time, instances).

    Of the GPU-seconds, `starting_seconds` are before an instance is ready, and `serving_seconds` with at
    least one request; the rest is idle.
    """

    name: str
    family: str
    waits: array[float]
    cold: int
    gpu_seconds: float
    work_seconds: float
    starts: int
    stops: int
    refused: int
    wait_slo: float
    decisions: int
    changes: tuple[tuple[float, int], ...] = ()
    starting_seconds: float = 0.0
    serving_seconds: float = 0.0

    @property
    def idle_seconds(self) -> float:
        """GPU-seconds of instances that are ready and have no request."""
        return max(0.0, self.gpu_seconds - self.starting_seconds - self.serving_seconds)
