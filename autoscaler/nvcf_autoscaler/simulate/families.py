"""Synthetic arrival traces. A family is a shape of demand; a seed gives rates, durations and start-up times.

The results of the `TUNED` families were used while the policy was written. The `HELD_OUT` families were
written after its last change and run once. Those of production.py follow published characterisations.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Iterator
from itertools import islice

from nvcf_autoscaler.errors import InvalidTrace
from nvcf_autoscaler.simulate.arrivals import HOUR, Family, log_uniform, thinned
from nvcf_autoscaler.simulate.model import SimulatedFunction, SimulatedSpecification, StartupTimes, generator
from nvcf_autoscaler.simulate.production import PRODUCTION

_MAX_REQUESTS = 200_000


def _renewal(rng: random.Random, gap: Callable[[], float], horizon: float) -> Iterator[float]:
    at = gap() * rng.random()
    while at < horizon:
        yield at
        at += gap()


def _poisson(rng: random.Random, horizon: float) -> Iterator[float]:
    mean = log_uniform(rng, 1.0, 60.0)
    return _renewal(rng, lambda: rng.expovariate(1.0 / mean), horizon)


def _steady(rng: random.Random, horizon: float) -> Iterator[float]:
    rate = log_uniform(rng, 0.5, 5.0)
    return thinned(rng, lambda at: rate, rate, horizon)


def _diurnal(rng: random.Random, horizon: float) -> Iterator[float]:
    peak, phase = log_uniform(rng, 0.3, 4.0), rng.uniform(0, 2 * math.pi)
    night = rng.uniform(0.0, 0.2)

    def rate(at: float) -> float:
        wave = 0.5 - 0.5 * math.cos(2 * math.pi * at / (24 * HOUR) + phase)
        return peak * (night + (1 - night) * wave**2)

    return thinned(rng, rate, peak, horizon)


def _bursts(rng: random.Random, horizon: float) -> Iterator[float]:
    """A low load with occasional minutes of heavy load."""
    low, high = log_uniform(rng, 0.002, 0.05), log_uniform(rng, 1.0, 6.0)
    every, length = log_uniform(rng, 900.0, 7200.0), log_uniform(rng, 30.0, 300.0)
    at = rng.expovariate(1 / every)
    edges: list[tuple[float, float]] = []
    while at < horizon:
        edges.append((at, at + length * rng.uniform(0.5, 1.5)))
        at = edges[-1][1] + rng.expovariate(1 / every)
    return _on_off(rng, edges, low, high, horizon)


def _on_off(
    rng: random.Random, edges: list[tuple[float, float]], low: float, high: float, horizon: float
) -> Iterator[float]:
    arrivals = list(thinned(rng, lambda at: low, low, horizon)) if low > 0 else []
    for begins, ends in edges:
        arrivals += [
            begins + at for at in thinned(rng, lambda at: high, high, max(0.0, min(ends, horizon) - begins))
        ]
    arrivals.sort()
    return iter(arrivals)


def _flash(rng: random.Random, horizon: float) -> Iterator[float]:
    """A low steady load, and one burst that comes within seconds and ebbs away over minutes."""
    base, peak = log_uniform(rng, 0.01, 0.3), log_uniform(rng, 2.0, 15.0)
    begins, decay = rng.uniform(0.2, 0.7) * horizon, log_uniform(rng, 120.0, 1200.0)

    def rate(at: float) -> float:
        return base + (peak * math.exp((begins - at) / decay) if at >= begins else 0.0)

    return thinned(rng, rate, base + peak, horizon)


def _rare(rng: random.Random, horizon: float) -> Iterator[float]:
    mean = log_uniform(rng, 120.0, 5400.0)
    return _renewal(rng, lambda: rng.expovariate(1 / mean), horizon)


def _periodic(rng: random.Random, horizon: float) -> Iterator[float]:
    """A timer with little jitter, one to a few requests each time."""
    period, jitter = rng.choice([120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0]), log_uniform(rng, 0.1, 5.0)
    size = rng.choice([1, 1, 1, 3, 8])
    phase = rng.random() * period
    arrivals = [
        abs(phase + index * period + rng.gauss(0, jitter) + rng.random() * 0.5)
        for index in range(int((horizon - phase) / period))
        for _ in range(size)
    ]
    arrivals.sort()
    return iter(arrivals)


def _on_off_markov(rng: random.Random, horizon: float) -> Iterator[float]:
    """Alternating on and off periods of exponential length."""
    high, on, off = (
        log_uniform(rng, 0.05, 2.0),
        log_uniform(rng, 120.0, 1800.0),
        log_uniform(rng, 300.0, 5400.0),
    )
    edges, at = [], rng.expovariate(1 / off)
    while at < horizon:
        edges.append((at, at + rng.expovariate(1 / on)))
        at = edges[-1][1] + rng.expovariate(1 / off)
    return _on_off(rng, edges, 0.0, high, horizon)


def _heavy_tail(rng: random.Random, horizon: float) -> Iterator[float]:
    scale, shape = log_uniform(rng, 1.0, 60.0), rng.uniform(1.1, 1.8)
    return _renewal(rng, lambda: scale * rng.paretovariate(shape), horizon)


def _ramp(rng: random.Random, horizon: float) -> Iterator[float]:
    """A ramp to full load over the first half, then a sudden drop."""
    peak, rest = log_uniform(rng, 0.5, 5.0), rng.uniform(0.02, 0.3)

    def rate(at: float) -> float:
        return peak * (at / (horizon / 2) if at < horizon / 2 else rest)

    return thinned(rng, rate, peak, horizon)


def _shifts(rng: random.Random, horizon: float) -> Iterator[float]:
    """A new independent rate about every hour."""
    length = rng.uniform(1200.0, 5400.0)
    rates = [log_uniform(rng, 0.005, 4.0) for _ in range(int(horizon / length) + 1)]
    return thinned(rng, lambda at: rates[int(at / length)], max(rates), horizon)


def _batches(rng: random.Random, horizon: float) -> Iterator[float]:
    """Many requests at the same instant, at irregular times."""
    every, size = log_uniform(rng, 600.0, 5400.0), log_uniform(rng, 5.0, 120.0)
    arrivals: list[float] = []
    at = rng.expovariate(1 / every)
    while at < horizon:
        arrivals += [at] * max(1, round(rng.expovariate(1 / size)))
        at += rng.expovariate(1 / every)
    return iter(arrivals)


def _sessions(rng: random.Random, horizon: float) -> Iterator[float]:
    """Users who arrive, send several requests with pauses, and leave."""
    every, pause = log_uniform(rng, 60.0, 1800.0), log_uniform(rng, 3.0, 60.0)
    length = rng.uniform(2.0, 12.0)
    arrivals: list[float] = []
    at = rng.expovariate(1 / every)
    while at < horizon:
        asks = at
        for _ in range(1 + int(rng.expovariate(1 / length))):
            arrivals.append(asks)
            asks += rng.expovariate(1 / pause)
        at += rng.expovariate(1 / every)
    arrivals.sort()
    return iter([arrival for arrival in arrivals if arrival < horizon])


def _echoes(rng: random.Random, horizon: float) -> Iterator[float]:
    """Self-exciting arrivals: each request may cause others soon after it (Hawkes, 1971)."""
    base, children, delay = log_uniform(rng, 0.005, 0.3), rng.uniform(0.3, 0.85), log_uniform(rng, 2.0, 120.0)
    arrivals = list(thinned(rng, lambda at: base, base, horizon))
    following = list(arrivals)
    while following:
        parent = following.pop()
        while rng.random() < children / (1 + children):
            child = parent + rng.expovariate(1 / delay)
            if child < horizon:
                arrivals.append(child)
                following.append(child)
    arrivals.sort()
    return iter(arrivals)


def _office(rng: random.Random, horizon: float) -> Iterator[float]:
    """Steady load in office hours with a break, little outside, with sharp edges."""
    busy, quiet = log_uniform(rng, 0.05, 3.0), log_uniform(rng, 0.0005, 0.01)
    opens, closes = rng.uniform(0.1, 0.25) * horizon, rng.uniform(0.75, 0.9) * horizon
    lunch = rng.uniform(0.4, 0.6) * horizon

    def rate(at: float) -> float:
        if not opens <= at < closes:
            return quiet
        return 0.3 * busy if lunch <= at < lunch + 0.06 * horizon else busy

    return thinned(rng, rate, max(busy, quiet), horizon)


def _hourly(rng: random.Random, horizon: float) -> Iterator[float]:
    """A base load, and a peak of some minutes at the full hour."""
    base, peak = log_uniform(rng, 0.005, 0.5), log_uniform(rng, 0.5, 6.0)
    period, length = rng.choice([1800.0, 3600.0]), rng.uniform(60.0, 400.0)
    return thinned(rng, lambda at: base + (peak if at % period < length else 0.0), base + peak, horizon)


TUNED: dict[str, Family] = {
    "poisson": _poisson,
    "steady": _steady,
    "diurnal": _diurnal,
    "bursts": _bursts,
    "flash": _flash,
    "rare": _rare,
    "periodic": _periodic,
    "onoff": _on_off_markov,
    "heavytail": _heavy_tail,
    "ramp": _ramp,
    "shifts": _shifts,
    "batches": _batches,
    "long": _diurnal,
}
HELD_OUT: dict[str, Family] = {
    "sessions": _sessions,
    "echoes": _echoes,
    "office": _office,
    "hourly": _hourly,
}
FAMILIES = {**TUNED, **HELD_OUT, **PRODUCTION}


def make_function(
    family: str, seed: int, index: int, horizon: float = 6 * HOUR, wait_slo: float = 5.0
) -> SimulatedFunction:
    """Return one function of a family. Raises InvalidTrace for an unknown family."""
    if family not in FAMILIES:
        raise InvalidTrace(f"there is no trace family {family!r}; known: {', '.join(FAMILIES)}")
    rng = generator(seed, family, index)
    arrivals = array("d", islice(FAMILIES[family](rng, horizon), _MAX_REQUESTS))
    mean = log_uniform(rng, 20.0, 90.0) if family == "long" else log_uniform(rng, 0.3, 10.0)
    sigma = rng.uniform(0.6, 1.2) if family == "long" else rng.uniform(0.1, 0.7)
    durations = array("d", (mean * math.exp(rng.gauss(-sigma * sigma / 2, sigma)) for _ in arrivals))
    spec = SimulatedSpecification(
        max_instances=rng.choice([8, 16, 32, 64]),
        max_request_concurrency=rng.choice([1, 1, 1, 2, 4, 8]),
        startup=StartupTimes(log_uniform(rng, 8.0, 75.0), rng.uniform(0.1, 0.35)),
    )
    _fit(arrivals, durations, 0.6 * spec.max_instances * spec.max_request_concurrency, horizon)
    callers = rng.randint(2, 60) if family == "closed" else 0
    return SimulatedFunction(
        f"{family}-{seed}-{index}", arrivals, durations, horizon, (spec,), family, wait_slo, callers
    )


def _fit(arrivals: array[float], durations: array[float], slots: float, horizon: float) -> None:
    """Shorten the durations so that this many slots can serve the busiest twelfth of the time.

    In a function that is overloaded for hours, every policy runs at the maximum.
    """
    load = [0.0] * 12
    for arrival, duration in zip(arrivals, durations, strict=True):
        load[min(11, int(12 * arrival / horizon))] += duration * 12 / horizon
    shrink = slots / max(*load, slots)
    for index, duration in enumerate(durations):
        durations[index] = duration * shrink


def make_day(functions: int, seed: int, horizon: float = 24 * HOUR) -> list[SimulatedFunction]:
    """Return functions that differ as in "Serverless in the Wild", section 3.

    Nearly half are called at most once an hour, four of five at most once a minute, and a few get most of the
    requests. Three of ten are called by a timer.
    """
    return [_day_function(generator(seed, "day", index), index, horizon) for index in range(functions)]


def _day_function(rng: random.Random, index: int, horizon: float) -> SimulatedFunction:
    share = rng.random()
    if share < 0.45:
        daily = log_uniform(rng, 1.2, 24.0)
    elif share < 0.81:
        daily = log_uniform(rng, 24.0, 1440.0)
    else:
        daily = log_uniform(rng, 1440.0, 30000.0)
    rate, phase, depth = daily / (24 * HOUR), rng.uniform(0, 2 * math.pi), rng.random()
    if rng.random() < 0.3:
        arrivals = array("d", _renewal(rng, lambda: rng.uniform(0.99, 1.01) / rate, horizon))
    else:

        def wave(at: float) -> float:
            return rate * (1 + depth * math.cos(2 * math.pi * at / (24 * HOUR) + phase))

        arrivals = array("d", thinned(rng, wave, 2 * rate, horizon))
    mean = log_uniform(rng, 0.3, 10.0)
    durations = array("d", (mean * math.exp(rng.gauss(-0.125, 0.5)) for _ in arrivals))
    spec = SimulatedSpecification(
        max_instances=16,
        max_request_concurrency=rng.choice([1, 1, 2, 4]),
        startup=StartupTimes(log_uniform(rng, 8.0, 75.0), 0.25),
    )
    return SimulatedFunction(f"day-{index}", arrivals, durations, horizon, (spec,), "day")
