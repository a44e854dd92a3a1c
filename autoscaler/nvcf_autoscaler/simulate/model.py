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
    """Log-normal times from creation to ready; `sigma` 0 makes them constant."""

    median: float = 30.0
    sigma: float = 0.25

    def draw(self, *parts: object) -> Iterator[float]:
        """Yield start-up times that depend only on the parts. The n-th start takes the n-th of them."""
        rng = generator(*parts)
        while True:
            yield self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0)) if self.sigma else self.median


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
    """One function and all its requests: `arrivals` in rising order, `durations` of the same length."""

    name: str
    arrivals: array[float]
    durations: array[float]
    horizon: float
    specifications: tuple[SimulatedSpecification, ...] = (SimulatedSpecification(),)
    family: str = "trace"
    wait_slo: float = 5.0

    def __post_init__(self) -> None:
        if len(self.arrivals) != len(self.durations):
            raise InvalidTrace(f"{self.name}: as many arrivals as durations are needed")


@dataclass(frozen=True)
class FunctionResult:
    """Result of one policy on one function. `waits[i]` is of request i; `changes` are (time, instances)."""

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
