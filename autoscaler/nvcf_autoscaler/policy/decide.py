"""The scaling policy: `decide` turns an observation of a function version into instances per specification.

Steps: what the demand needs now (demand.py), one more instance for each late start-up (startup.py), instances
kept or started ahead although they are not needed now (keep_alive.py), bounds and growth limit, and the GPU
specifications (spill.py). Pure: the clock comes in as `now`, the state goes in and out as PolicyState.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from nvcf_autoscaler.policy.demand import Demand, measure
from nvcf_autoscaler.policy.keep_alive import keep_alive
from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.settings import ScalingSettings
from nvcf_autoscaler.policy.spill import Spread, spread
from nvcf_autoscaler.policy.startup import Startup, estimate, overdue
from nvcf_autoscaler.policy.state import Desired, LastDecision, Part, PolicyState
from nvcf_autoscaler.policy.utilisation import utilisation_target


class Counted(NamedTuple):
    """A number with its noun: `1 more slot`, `4 more slots`."""

    number: int
    noun: str

    def __str__(self) -> str:
        return f"{self.number} {self.noun}{'' if self.number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Desired instances in preferred order, the new state, and why.

    Until the instant `requeue_at`, only a new event changes the decision: a request that finds no free slot,
    the first request after an idle time, an instance that becomes ready or is lost. `missing` is the number
    of instances without capacity. `needed` is the demand in instances of the preferred specification, without
    those that are only kept. `parts` are the facts behind `reason`.
    """

    desired: tuple[Desired, ...]
    state: PolicyState
    requeue_at: float
    missing: int
    parts: tuple[Part, ...]
    needed: int = 0

    @property
    def total(self) -> int:
        """Desired instances of all specifications."""
        return sum(part.instances for part in self.desired)

    @property
    def reason(self) -> str:
        """The reason as text: `3 instances: ...`."""
        texts = "; ".join(text.format(*values) for text, values in self.parts)
        return f"{Counted(self.total, 'instance')}: {texts}"


def decide(now: float, seen: Observation, settings: ScalingSettings, state: PolicyState) -> Decision:
    """Return how many instances of each GPU specification there should be now, and why.

    `seen.specifications` must list the specifications of `settings` in the same order. The same arguments
    always give the same decision. Until `requeue_at`, deciding again with its state gives the same instances
    while nothing happens.
    """
    last = state.last
    if last is not None and last.holds(now, seen, settings):
        return Decision(last.desired, state, last.requeue_at, last.missing, last.parts, last.needed)
    tuning = settings.tuning
    startup = estimate(seen.recent_startups, tuning.startup_prior, tuning.overdue_factor)
    rates = state.rates.after(now, seen, tuning)
    service = rates.service_time(seen.in_flight, tuning.service_prior)
    concurrency = state.concurrency.after(now, seen, settings, service)
    declared, settings = settings, concurrency.applied(settings)
    used = state.utilisation
    parts: list[Part] = []
    if settings.scale_up is not None and settings.scale_down is not None:
        used, needed, text = utilisation_target(now, seen, settings, used)
        parts.append((text, ()))
    else:
        demand = measure(now, seen, rates, state.burst, settings, startup)
        rates = rates._replace(load=demand.load)
        needed = -(-demand.slots // settings.slots)
        parts.append(_explain_demand(demand, seen, settings, guessed=rates.completed < 1))
        if demand.slots and settings.slots < declared.slots:
            parts.append(("instances take {} of {} requests at once", (settings.slots, declared.slots)))
    requeue_at = _requeue_at(now, seen, needed, settings)
    if seen.queued:
        late, due = _late(now, seen, startup)
        requeue_at = min(requeue_at, due)
        if late:
            needed += late
            parts.append(("{} more for start-ups older than {:.3g} s", (late, startup.overdue)))
    if needed > settings.max_preferred:
        # A count above what the deployment allows is not worth remembering.
        needed = settings.max_preferred
        parts.append(("{} at most, by the deployment", (settings.max_instances,)))
    kept, learnt = keep_alive(now, seen, needed, settings, state, startup)
    requeue_at = min(requeue_at, kept.requeue_at)
    if kept.why:
        parts.append(kept.why)
    target = _at_least(kept.instances, settings, parts)
    total = sum([spec.total for spec in seen.specifications])
    growth_at, growth_base = state.growth_at, state.growth_base
    if target > total:
        if now - growth_at >= tuning.growth_period:
            growth_at, growth_base = now, total
        limited = min(target, _growth_limit(min(growth_base, total), settings))
        if limited < target:
            parts.append(("{} wanted, {} allowed within {:g} s", (target, limited, tuning.growth_period)))
            requeue_at = min(requeue_at, growth_at + tuning.growth_period)
            target = limited
    placed = spread(target * settings.slots, settings, seen.specifications)
    _explain_capacity(placed, settings, parts)
    desired = tuple(
        [Desired(spec.id, count) for spec, count in zip(settings.specifications, placed.counts, strict=True)]
    )
    missing = -(-placed.missing_slots // settings.slots)
    last = LastDecision(seen, declared, desired, requeue_at, missing, tuple(parts), needed)
    after = PolicyState(rates, *learnt, growth_at, growth_base, used, last, concurrency)
    return Decision(desired, after, requeue_at, missing, last.parts, needed)


def _explain_demand(demand: Demand, seen: Observation, settings: ScalingSettings, *, guessed: bool) -> Part:
    if demand.slots == 0:
        return ("nothing queued or in flight", ())
    if demand.drain and seen.in_flight + demand.drain >= demand.steady:
        return (
            "{} queued and {} in flight at {:.2g} s each{}: {} for a start within {:g} s",
            (
                seen.queued,
                seen.in_flight,
                demand.service,
                " (none has ended yet)" if guessed else "",
                Counted(demand.drain, "more slot"),
                settings.wait_slo,
            ),
        )
    if demand.steady >= max(1, seen.in_flight):
        return (
            "the last {:.3g} s keep {:.2g} slots busy: {} let {:.4g} % start within {:g} s",
            (demand.window, demand.load, demand.steady, settings.attainment * 100, settings.wait_slo),
        )
    return ("{} queued, {} in flight", (seen.queued, seen.in_flight))


def _requeue_at(now: float, seen: Observation, needed: int, settings: ScalingSettings) -> float:
    if needed > 1 and any(spec.running for spec in seen.specifications):
        return now + settings.tuning.tick
    # What an idle version needs is only what the rates have not forgotten yet.
    if seen.queued or seen.in_flight or needed > 0:
        return now + settings.tuning.calm_tick
    return math.inf


def _late(now: float, seen: Observation, startup: Startup) -> tuple[int, float]:
    """Return how many start-ups are late, since these may never end, and when the next one will be late."""
    late = 0
    due = math.inf
    for spec in seen.specifications:
        if spec.starting:
            late += overdue(spec.starting, now, startup.overdue)
            for created in spec.starting:
                if now - created <= startup.overdue:
                    due = min(due, created + startup.overdue + 1e-3)
    return late, due


def _at_least(target: int, settings: ScalingSettings, parts: list[Part]) -> int:
    floor = max(settings.min_instances, settings.keep_warm)
    if target >= floor:
        return target
    parts.append(("{} at least, by the deployment", (floor,)))
    return floor


def _growth_limit(base: int, settings: ScalingSettings) -> int:
    tuning = settings.tuning
    return max(base + tuning.growth_step, math.ceil(base * tuning.growth_factor), settings.min_instances)


def _explain_capacity(placed: Spread, settings: ScalingSettings, parts: list[Part]) -> None:
    if placed.spilled:
        parts.append(("{} on a less preferred specification", (placed.spilled,)))
    if placed.missing_slots:
        missing = -(-placed.missing_slots // settings.slots)
        parts.append(("no capacity for {}", (Counted(missing, "more instance"),)))
