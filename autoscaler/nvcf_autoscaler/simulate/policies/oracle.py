"""The oracle: what a policy that knows every request in advance would spend.

It is a plan, not a run. Requests start at most `wait_slo` after they arrive (or as soon as the maximum of
instances allows), and share slots where that saves some. The instances are then levels of the curve "slots in
use". Each level is busy or not, and between two busy stretches an instance is kept if that is cheaper than
starting one in time.

For a wait of zero this is the true minimum. With an SLO above zero it is the cheapest of several plans: with
and without delayed requests, and under the lowest constant ceiling on instances that meets the attainment.
The true minimum may be lower.

An `attainment` below 1 allows to miss that share of requests: by a lower ceiling, or by dropping the
stretches with the highest overhead per request and serving their requests whenever an instance runs.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from heapq import heappop, heappush

from nvcf_autoscaler.simulate.model import FunctionResult, SimulatedFunction


@dataclass(frozen=True, slots=True)
class _Stretch:
    """One instance from start to end: seconds without work (start-up, idle), and requests begun."""

    overhead: float
    requests: int


def oracle(function: SimulatedFunction, attainment: float = 1.0) -> FunctionResult:
    """Return the cheapest plan found at this attainment. Start-up times are taken at their mean."""
    spec = function.specifications[0]
    startup = spec.startup.median * math.exp(spec.startup.sigma**2 / 2.0)
    budget = int((1.0 - attainment) * len(function.arrivals))
    most = spec.max_instances
    # (patience, ceiling, how many requests may still be missed)
    plans = [(0.0, most, budget), (function.wait_slo, most, budget)]
    for missed in {0, budget}:
        ceiling = _least_ceiling(function, startup, missed)
        plans += [(0.0, ceiling, budget - missed), (function.wait_slo, ceiling, budget - missed)]
    return min((_plan(function, startup, *plan) for plan in plans), key=lambda result: result.gpu_seconds)


def _plan(
    function: SimulatedFunction, startup: float, patience: float, ceiling: int, budget: int
) -> FunctionResult:
    spec = function.specifications[0]
    starts = _schedule(function, patience, ceiling, startup)
    work, stretches = _stretches(starts, function.durations, spec.max_request_concurrency, startup)
    kept = _drop_costliest(stretches, budget)
    seconds = (work + sum(stretch.overhead for stretch in kept)) * spec.gpus
    return _result(function, starts, seconds, len(kept))


def _least_ceiling(function: SimulatedFunction, startup: float, budget: int) -> int:
    """Return the fewest instances with which at most `budget` requests start late, or the maximum."""
    low, high = 1, function.specifications[0].max_instances
    while low < high:
        middle = (low + high) // 2
        starts = _schedule(function, 0.0, middle, startup)
        patience = function.wait_slo + 1e-9
        late = sum(
            1 for start, arrival in zip(starts, function.arrivals, strict=True) if start - arrival > patience
        )
        low, high = (low, middle) if late <= budget else (middle + 1, high)
    return low


def _schedule(function: SimulatedFunction, patience: float, ceiling: int, startup: float) -> array[float]:
    """Return when each request starts: at once in a warm slot, when one is free in time, or in a new slot."""
    spec = function.specifications[0]
    limit = ceiling * spec.max_request_concurrency
    busy: list[float] = []
    idle: list[float] = []
    starts = array("d")
    for arrival, duration in zip(function.arrivals, function.durations, strict=True):
        while busy and busy[0] <= arrival:
            idle.append(heappop(busy))
        if idle and idle[-1] < arrival - startup:
            idle.clear()
        if idle:
            idle.pop()
            start = arrival
        elif busy and (busy[0] <= arrival + patience or len(busy) >= limit):
            start = heappop(busy)
        else:
            start = arrival + patience
        heappush(busy, start + duration)
        starts.append(start)
    return starts


def _stretches(
    starts: array[float], durations: array[float], slots: int, startup: float
) -> tuple[float, list[_Stretch]]:
    """Return instance-seconds with work, and the stretches of all levels."""
    events = [(start, 1) for start in starts]
    events += [(start + duration, -1) for start, duration in zip(starts, durations, strict=True)]
    events.sort()
    ended: list[float] = []
    overhead: list[float] = []
    requests: list[int] = []
    done: list[_Stretch] = []
    used = level = 0
    work = clock = 0.0
    for instant, step in events:
        work += level * (instant - clock)
        clock = instant
        used += step
        if step > 0:
            if used > level * slots:
                level += 1
                if level > len(ended):
                    ended.append(instant)
                    overhead.append(startup)
                    requests.append(0)
                elif instant - ended[level - 1] <= startup:
                    overhead[level - 1] += instant - ended[level - 1]
                else:
                    done.append(_Stretch(overhead[level - 1], requests[level - 1]))
                    overhead[level - 1] = startup
                    requests[level - 1] = 0
            requests[-(-used // slots) - 1] += 1
        elif used <= (level - 1) * slots:
            level -= 1
            ended[level] = instant
    done += [_Stretch(cost, count) for cost, count in zip(overhead, requests, strict=True)]
    return work, done


def _drop_costliest(stretches: list[_Stretch], budget: int) -> list[_Stretch]:
    """Drop the stretches with the highest overhead per request, within the budget; one always stays."""
    ordered = sorted(stretches, key=lambda stretch: stretch.overhead / max(1, stretch.requests))
    while len(ordered) > 1 and ordered[-1].requests <= budget:
        budget -= ordered.pop().requests
    return ordered


def _result(
    function: SimulatedFunction, starts: array[float], gpu_seconds: float, count: int
) -> FunctionResult:
    waits = array("d", (start - arrival for start, arrival in zip(starts, function.arrivals, strict=True)))
    return FunctionResult(
        name=function.name,
        family=function.family,
        waits=waits,
        cold=0,
        gpu_seconds=gpu_seconds,
        work_seconds=sum(function.durations),
        starts=count,
        stops=count,
        refused=0,
        wait_slo=function.wait_slo,
        decisions=0,
    )
