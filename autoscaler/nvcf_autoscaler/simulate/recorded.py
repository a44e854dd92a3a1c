"""Turns the scaling history of a version into a simulated function. Pure.

The history has steps of five seconds. Requests are spread at random over their step. A busy period is a row
of steps with requests. The requests of one whose mean service time is at least two seconds take that mean.
Shorter ones are too short for samples of a second, so that all of these take their common mean.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from nvcf_autoscaler.errors import InvalidTrace
from nvcf_autoscaler.simulate.model import (
    SimulatedFunction,
    SimulatedSpecification,
    StartupTimes,
    generator,
)
from nvcf_proto.scaling_history import HOUR, STEP_SECONDS, HistoryBlock, Step

_USUAL_STARTUP = 30.0
_USUAL_SIGMA = 0.25
_SHORT = 2.0
_LEAST_SERVICE = 0.01


@dataclass(frozen=True)
class Recorded:
    """What a version did: as a function to simulate, and what its instances really took.

    `gpu_seconds` and `mean_wait` (seconds in the queue) are measured. `begins_at` is Unix seconds.
    """

    name: str
    version_id: str
    function: SimulatedFunction
    profile: str
    gpu: str
    begins_at: float
    gpu_seconds: float
    mean_wait: float
    startups: int


def recorded(blocks: Sequence[HistoryBlock]) -> Recorded:
    """Return what the blocks of one version tell, oldest hour first. Raises InvalidTrace without requests."""
    ordered = sorted(blocks, key=lambda block: block.hour)
    steps = [
        (block.hour * HOUR + step[0] * STEP_SECONDS, step)
        for block in ordered
        for step in block.steps
        if 0 <= step[0] < HOUR // STEP_SECONDS
    ]
    if not any(step[1] > 0 for _, step in steps):
        raise InvalidTrace("no requests are recorded")
    last = ordered[-1]
    begins_at = steps[0][0]
    function = SimulatedFunction(
        last.name,
        *_requests(steps, begins_at, last.version_id),
        float(steps[-1][0] + STEP_SECONDS - begins_at),
        (
            SimulatedSpecification(
                last.gpu or "gpu",
                last.max_instances,
                last.min_instances,
                last.slots,
                last.gpus,
                startup_times([each for block in ordered for each in block.startups]),
            ),
        ),
        "recorded",
        last.wait_slo,
    )
    return Recorded(
        last.name,
        last.version_id,
        function,
        last.profile,
        last.gpu,
        float(begins_at),
        sum(step[5] for _, step in steps),
        sum(step[4] for _, step in steps) / len(function.arrivals),
        sum(len(block.startups) for block in ordered),
    )


def startup_times(measured: Sequence[float]) -> StartupTimes:
    """Return the log-normal distribution of measured start-up times; a usual one without any."""
    logarithms = sorted(math.log(max(0.05, each)) for each in measured)
    if not logarithms:
        return StartupTimes(_USUAL_STARTUP, _USUAL_SIGMA)
    median = math.exp(logarithms[len(logarithms) // 2])
    if len(logarithms) < 3:
        return StartupTimes(median, _USUAL_SIGMA)
    mean = sum(logarithms) / len(logarithms)
    spread = math.sqrt(sum((each - mean) ** 2 for each in logarithms) / (len(logarithms) - 1))
    return StartupTimes(median, spread)


def _requests(
    steps: Sequence[tuple[int, Step]], begins_at: int, seed: str
) -> tuple[array[float], array[float]]:
    periods = _busy_periods(steps)
    means = [_mean_service(period) for period in periods]
    short = [
        period for period, mean in zip(periods, means, strict=True) if mean is not None and mean < _SHORT
    ]
    usual = _mean_service([each for period in short for each in period]) or _LEAST_SERVICE
    rng = generator(seed, "arrivals")
    requests: list[tuple[float, float]] = []
    for period, mean in zip(periods, means, strict=True):
        service = mean if mean is not None and mean >= _SHORT else usual
        for at, step in period:
            requests += [(at - begins_at + rng.random() * STEP_SECONDS, service) for _ in range(step[1])]
    requests.sort()
    return array("d", (at for at, _ in requests)), array("d", (service for _, service in requests))


def _busy_periods(steps: Sequence[tuple[int, Step]]) -> list[list[tuple[int, Step]]]:
    found: list[list[tuple[int, Step]]] = []
    before = -math.inf
    for at, step in steps:
        if not (step[1] or step[2] or step[3] or step[4]):
            continue
        if at - before > STEP_SECONDS:
            found.append([])
        found[-1].append((at, step))
        before = at
    return found


def _mean_service(period: Sequence[tuple[int, Step]]) -> float | None:
    """Return busy seconds by requests; None without requests."""
    # A period that goes on may have fewer completions than arrivals; lost samples may do the contrary.
    requests = max(sum(step[1] for _, step in period), sum(step[2] for _, step in period))
    return max(_LEAST_SERVICE, sum(step[3] for _, step in period) / requests) if requests > 0 else None
