"""Random numbers and arrivals that families of traces are made of."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

HOUR = 3600.0
Rate = Callable[[float], float]
Family = Callable[[random.Random, float], Iterator[float]]


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """Return a number for which every order of magnitude between the two is equally likely."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def thinned(rng: random.Random, rate: Rate, peak: float, horizon: float) -> Iterator[float]:
    """Yield Poisson arrivals at a changing rate of at most `peak` (Lewis and Shedler, 1979)."""
    at = 0.0
    while True:
        at += rng.expovariate(peak)
        if at >= horizon:
            return
        if rng.random() * peak <= rate(at):
            yield at
