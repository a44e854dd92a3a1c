"""Between two decisions nothing changes: what `requeue_at` promises, in any state that a run can reach.

Runs are those of the simulator. At each of their decisions time goes on while nothing happens: no request
comes or ends, no instance becomes ready or is lost.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nvcf_autoscaler.policy.decide import Decision, decide
from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.settings import ScalingDetails, ScalingSettings, SpecificationSettings
from nvcf_autoscaler.policy.state import PolicyState
from nvcf_autoscaler.simulate.engine import simulate
from nvcf_autoscaler.simulate.model import SimulatedFunction, SimulatedSpecification, StartupTimes, generator
from nvcf_autoscaler.simulate.policies.base import Answer, Policy
from nvcf_autoscaler.simulate.policies.ours import Ours

# Shares of the time to `requeue_at`, and seconds where that is never.
_SHARES = (0.1, 0.5, 0.9, 0.999)
_LATER = (1.0, 10.0, 40.0, 59.0, 100.0, 1000.0, 5000.0, 100_000.0)


@dataclass(frozen=True)
class Watched(Policy):
    """Ours, checked after each decision."""

    deployment: ScalingSettings = field(
        default_factory=lambda: ScalingSettings((SpecificationSettings("gpu"),))
    )
    reaction: float = 0.1
    wake_after_idle: float = 5.0

    def start(self, function: SimulatedFunction) -> WatchedRun:
        return WatchedRun(self.deployment)


class WatchedRun:
    """Carries the state on, and asks again at instants at which nothing has happened."""

    def __init__(self, deployment: ScalingSettings) -> None:
        self._deployment = deployment
        self._state = PolicyState()

    def decide(self, now: float, seen: Observation) -> Answer:
        decision = decide(now, seen, self._deployment, self._state)
        self._state = decision.state
        self._check(now, seen, decision)
        counts = tuple(part.instances for part in decision.desired)
        return Answer(counts, decision.requeue_at, sum(counts) < self._deployment.max_instances)

    def _check(self, now: float, seen: Observation, decision: Decision) -> None:
        never = decision.requeue_at == math.inf
        passed = _LATER if never else [share * (decision.requeue_at - now) for share in _SHARES]
        # What holds for long must also be what a decision without the last one would say.
        long = decision.requeue_at > now + self._deployment.tuning.calm_tick
        state = decision.state._replace(last=None) if long else decision.state
        for seconds in passed:
            later = decide(now + seconds, _after(seen, seconds, self._deployment), self._deployment, state)
            assert later.desired == decision.desired, (
                f"{now:.6g} s: {decision.reason}, until {decision.requeue_at:.6g}; "
                f"{seconds:.6g} s later: {later.reason}"
            )


def _after(seen: Observation, seconds: float, deployment: ScalingSettings) -> Observation:
    """Return what is seen later if nothing happens: only the integrals over time have grown."""
    slots = sum(
        spec.running * bounds.max_request_concurrency
        for spec, bounds in zip(seen.specifications, deployment.specifications, strict=True)
    )
    return replace(
        seen,
        busy_seconds=seen.busy_seconds + seen.in_flight * seconds,
        demand_seconds=seen.demand_seconds + (seen.queued + seen.in_flight) * seconds,
        slot_seconds=seen.slot_seconds + slots * seconds,
    )


@st.composite
def runs(draw: st.DrawFn) -> tuple[SimulatedFunction, ScalingSettings]:
    """Batches of requests with gaps of seconds to hours between them, and a deployment for them."""
    slots, most = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 8))
    least = draw(st.sampled_from([0, 0, 0, 1]))
    service = draw(st.floats(0.2, 30))
    arrivals, at = array("d"), 0.0
    for _ in range(draw(st.integers(1, 12))):
        at += draw(st.floats(0, 20) | st.floats(0, 4000))
        arrivals.extend([at] * draw(st.integers(1, 40)))
    durations = array("d", (service * draw(st.floats(0.5, 2)) for _ in range(3)))
    spec = SimulatedSpecification("gpu", most, least, slots, 1, StartupTimes(draw(st.floats(1, 60)), 0.3))
    one = SimulatedFunction(
        "f", arrivals, array("d", (durations[n % 3] for n in range(len(arrivals)))), at + 3600.0, (spec,)
    )
    rule = draw(st.sampled_from([None, None, (ScalingDetails(1.5, 75), ScalingDetails(0.5, 25))]))
    deployment = ScalingSettings(
        (SpecificationSettings("gpu", least, most, slots),),
        target_utilisation=draw(st.sampled_from([None, None, 0.7])),
        scale_to_zero_delay=draw(st.sampled_from([None, None, None, 0.0, 30.0])),
        keep_warm=draw(st.sampled_from([0, 0, 1])),
        profile=draw(st.sampled_from(["economy", "balanced", "fast"])),
        scale_up=rule[0] if rule else None,
        scale_down=rule[1] if rule else None,
    )
    return one, deployment


@given(runs())
@examples(max_examples=50, deadline=None)
def test_nothing_changes_before_the_next_decision_while_nothing_happens(
    case: tuple[SimulatedFunction, ScalingSettings],
) -> None:
    one, deployment = case
    simulate(one, Watched(deployment=deployment), 1)


@pytest.mark.parametrize("profile", ["balanced", "fast"])
def test_nothing_changes_between_two_decisions_of_a_version_that_starts_ahead_of_a_timer(
    profile: str,
) -> None:
    spec = SimulatedSpecification(max_instances=2, startup=StartupTimes(20.0, 0.0))
    arrivals = array("d", (900.0 * number for number in range(1, 25)))
    one = SimulatedFunction("f", arrivals, array("d", [1.0] * 24), 23_000.0, (spec,))
    deployment = ScalingSettings((SpecificationSettings("gpu", 0, 2),), profile=profile)

    result = simulate(one, Watched(deployment=deployment), 1)

    assert max(result.waits[-5:]) == 0.0, "it was started ahead"
    assert result.gpu_seconds < 24 * 200.0


@pytest.mark.parametrize("delay", [None, 0.0, 30.0])
def test_by_nvcfs_rule_an_idle_version_scales_to_zero_and_stays_there(delay: float | None) -> None:
    spec = SimulatedSpecification(max_instances=4, startup=StartupTimes(20.0, 0.0))
    one = SimulatedFunction("f", array("d", [10.0] * 20), array("d", [5.0] * 20), 4 * 3600.0, (spec,))
    deployment = ScalingSettings(
        (SpecificationSettings("gpu", 0, 4),),
        scale_to_zero_delay=delay,
        scale_up=ScalingDetails(1.5, 75),
        scale_down=ScalingDetails(0.5, 25),
    )

    assert simulate(one, Watched(deployment=deployment), 1).gpu_seconds < 600.0


@pytest.mark.parametrize(("seconds", "most"), [(60.0, 8.0), (0.0, 8.5)])
def test_sixty_functions_with_one_burst_each_cost_little_in_two_days(seconds: float, most: float) -> None:
    """20 to 60 requests within so many seconds, then silence: no instance is kept for a load that was."""
    spent = 0.0
    for index in range(60):
        rng = generator(1, "burst", index)
        size = rng.randint(20, 60)
        arrivals = array("d", sorted(100.0 + rng.uniform(0.0, seconds) for _ in range(size)))
        durations = array("d", (rng.uniform(2.0, 6.0) for _ in arrivals))
        spec = SimulatedSpecification(
            max_instances=8, max_request_concurrency=4, startup=StartupTimes(40.0, 0.25)
        )
        one = SimulatedFunction(f"burst-{index}", arrivals, durations, 48 * 3600.0, (spec,))
        spent += simulate(one, Ours(), 1).gpu_seconds

    assert spent <= most * 3600.0
