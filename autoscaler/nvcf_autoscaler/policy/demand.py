"""Slots that the present demand needs: Little's law, Erlang's delay formula (M/M/n), drain of the queue."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.rates import Rates
from nvcf_autoscaler.policy.settings import ScalingSettings
from nvcf_autoscaler.policy.startup import Startup, hedged_starts


class Demand(NamedTuple):
    """Slots needed now, and the quantities behind them.

    `load` is the mean number of slots that arrivals keep busy (arrival rate times service time), `window` the
    seconds it was taken over, `steady` the slots for it. `drain` is the slots for the queue beyond those in
    use, `service` the mean service time in seconds.
    """

    slots: int
    load: float
    steady: int
    window: float
    drain: int
    service: float


class _Queue(NamedTuple):
    """A queue to drain within `within` seconds; `load` is in slots."""

    waiting: int
    running: int
    load: float
    service: float
    within: float

    def slots(self, ready_in: float) -> int:
        """Return the slots that, ready in `ready_in` seconds, start the rest of the queue in time.

        The rest is what the running slots do not finish until then besides new arrivals.
        """
        worked_off = max(0.0, self.running - self.load) / self.service * (ready_in + self.within)
        left = self.waiting - worked_off
        return 0 if left <= 0 else math.ceil(left / (1.0 + self.within / self.service))


def measure(
    now: float, seen: Observation, rates: Rates, burst: float, settings: ScalingSettings, startup: Startup
) -> Demand:
    """Return what the demand needs now. `rates` already includes this observation."""
    tuning = settings.tuning
    service = max(rates.service_time(seen.in_flight, tuning.service_prior), 1e-3)
    window = rates.stable_window(tuning)
    rate = rates.per_second(now, seen.arrivals, window, tuning.stable_margin)
    panic = rates.per_second(now, seen.arrivals, tuning.panic_window, tuning.panic_margin)
    if panic > rate:
        rate, window = panic, tuning.panic_window
    load = _steadied(rate * service, rates.load, service, window, tuning.load_band)
    steady = _steady_slots(load, service, settings)
    drain = _drain_slots(now, seen, settings, startup, load, service, burst) if seen.queued else 0
    slots = max(seen.in_flight + drain, steady)
    if seen.queued + seen.in_flight > 0:
        slots = max(slots, 1)
    elif load < 1.0 or settings.scale_to_zero_delay is not None:
        # Mostly idle, or the deployment sets a scale-to-zero delay: keep-alive decides whether to stay warm.
        slots = 0
    return Demand(slots, load, steady, window, drain, service)


def _steadied(load: float, before: float, service: float, window: float, band: float) -> float:
    """Return the load, or the one used before if that is higher only by chance.

    A load from arrivals counted over a window has this deviation. Following it down would flap.
    """
    deviation = math.sqrt(before * service / window)
    return before if load < before <= load + band * deviation else load


def _steady_slots(load: float, service: float, settings: ScalingSettings) -> int:
    if settings.target_utilisation is not None:
        return math.ceil(load / settings.target_utilisation - 1e-9)
    return slots_for(load, settings.wait_slo / service, 1.0 - settings.attainment)


def _drain_slots(
    now: float,
    seen: Observation,
    settings: ScalingSettings,
    startup: Startup,
    load: float,
    service: float,
    burst: float,
) -> int:
    """Return the slots for the queue beyond those in use: new ones, and starting ones that still help."""
    tuning = settings.tuning
    running = starting = 0
    soonest = startup.usual
    for spec, bounds in zip(seen.specifications, settings.specifications, strict=True):
        running += bounds.max_request_concurrency * spec.running
        starting += bounds.max_request_concurrency * len(spec.starting)
        for created in spec.starting:
            soonest = min(soonest, max(0.0, startup.usual - (now - created)))
    waiting = seen.queued
    if running == 0:
        # Until the first instance is ready, about as many requests will wait as the last few times.
        waiting = max(waiting, math.floor(burst * tuning.burst_share))
    queue = _Queue(waiting, running, load, service, settings.wait_slo * tuning.drain_share)
    wanted = queue.slots(startup.usual)
    if starting:
        # Instances that are starting already help sooner than new ones.
        wanted = max(wanted, min(starting, queue.slots(soonest)))
    if running == 0:
        price = settings.price * tuning.hedge_share
        wanted = max(wanted, settings.slots * hedged_starts(waiting, startup, price))
    return wanted


# Loads are rounded up to this grid, so that the cache hits and noise does not change the result.
_GRID = 1.02
_EXACT_UP_TO = 400.0


def slots_for(load: float, patience: float, miss_share: float) -> int:
    """Return the fewest slots with which at most `miss_share` of requests wait longer than `patience`.

    `load` is arrivals per second times service time; `patience` is in service times. Zero for no load.
    """
    if load <= 1e-3:
        return 0
    step = math.ceil(math.log(load) / math.log(_GRID))
    return _slots(step, round(min(patience, 50.0), 2), miss_share)


@lru_cache(maxsize=65536)
def _slots(step: int, patience: float, miss_share: float) -> int:
    load = _GRID**step
    if load > _EXACT_UP_TO:
        # Square-root staffing is exact enough at this size.
        return math.ceil(load + 2.5 * math.sqrt(load))
    blocking = 1.0
    slots = 0
    while True:
        slots += 1
        blocking = load * blocking / (slots + load * blocking)
        if slots <= load:
            continue
        waits = blocking / (1.0 - load / slots * (1.0 - blocking))
        if waits * math.exp(-(slots - load) * patience) <= miss_share:
            return slots
