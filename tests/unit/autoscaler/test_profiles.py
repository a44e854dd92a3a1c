"""Profiles: what waiting is worth, and the cap on idle time."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nvcf_autoscaler.errors import InvalidSettings
from nvcf_autoscaler.policy.decide import decide
from nvcf_autoscaler.policy.settings import DEFAULT_TUNING, PROFILES, ScalingSettings, SpecificationSettings
from nvcf_autoscaler.policy.state import PolicyState
from nvcf_autoscaler.simulate.compare import run_policy
from nvcf_autoscaler.simulate.engine import simulate
from nvcf_autoscaler.simulate.model import SimulatedFunction, SimulatedSpecification, StartupTimes, generator
from nvcf_autoscaler.simulate.policies.ours import Ours
from tests.unit.autoscaler.helpers import observe

_STARTUP = DEFAULT_TUNING.startup_prior


def _settings(profile: str, wait_price: float | None = None) -> ScalingSettings:
    return ScalingSettings((SpecificationSettings("gpu0", 0, 4),), profile=profile, wait_price=wait_price)


def _sparse(gaps: list[float], seconds: float, most: int = 1) -> SimulatedFunction:
    arrivals = array("d")
    at = 0.0
    for gap in gaps:
        at += gap
        arrivals.append(at)
    spec = SimulatedSpecification(max_instances=most, startup=StartupTimes(_STARTUP, 0.0))
    return SimulatedFunction("f", arrivals, array("d", [seconds] * len(gaps)), at + 7200.0, (spec,))


@given(st.lists(st.floats(100, 4000), min_size=1, max_size=60), st.floats(0.1, 20))
@examples(max_examples=60, deadline=None)
def test_idle_time_stays_below_its_cap(gaps: list[float], seconds: float) -> None:
    """What was earned by work, what a version has at first, and one start-up time for each idle time."""
    one = _sparse(gaps, seconds)
    cap = PROFILES["economy"].idle_cap
    assert cap is not None

    result = simulate(one, Ours(profile="economy"), 1)

    allowed = cap * result.work_seconds + DEFAULT_TUNING.idle_first + _STARTUP * (len(gaps) + 1)
    assert result.idle_seconds <= allowed + 1.0


def test_the_reason_says_that_the_cap_decided() -> None:
    chosen = _settings("economy")
    state = PolicyState()
    reason = ""
    for served in range(12):
        at = 30.0 * (served + 1)
        seen = observe(
            0, queued=1, completions=served, busy_seconds=served * 0.1, busy_since=at, idle_before=29.0
        )
        state = decide(at, seen, chosen, state).state
        idle = observe(1, completions=served + 1, busy_seconds=served * 0.1 + 0.1, idle_since=at + 1.0)
        decision = decide(at + 1.0, idle, chosen, state)
        state, reason = decision.state, decision.reason

    assert "1 kept until unneeded for 20 s, not" in reason
    assert "idle time is capped at 20 times busy time" in reason


def test_a_higher_price_buys_shorter_waits_with_gpu_time() -> None:
    rng = generator(7, "profiles")
    functions = [_sparse([rng.expovariate(1 / 300) for _ in range(150)], 3.0, 4) for _ in range(6)]
    spent, waited = [], []
    for profile in ("economy", "balanced", "fast"):
        results = run_policy(f"ours:{profile}", functions, 1)
        spent.append(sum(result.gpu_seconds for result in results))
        waited.append(sum(sum(result.waits) for result in results))

    assert spent == sorted(spent)
    assert waited == sorted(waited, reverse=True)


def test_a_price_of_its_own_replaces_that_of_the_profile_and_is_planned_with_at_once() -> None:
    assert _settings("economy").price == PROFILES["economy"].wait_price
    assert _settings("economy", 2.5).price == 2.5
    idle = observe(1, idle_since=0.0)
    state = decide(0.0, idle, _settings("balanced"), PolicyState()).state
    dearer = decide(1.0, idle, _settings("balanced", 40.0), state).state

    assert state.first_plan is not None
    assert dearer.first_plan is not None
    assert dearer.first_plan.keep > state.first_plan.keep


def test_unknown_profiles_and_prices_are_refused() -> None:
    with pytest.raises(InvalidSettings, match="known are economy, balanced, fast"):
        _settings("cheap")
    with pytest.raises(InvalidSettings, match="between 0 and 1000"):
        _settings("fast", -1.0)
