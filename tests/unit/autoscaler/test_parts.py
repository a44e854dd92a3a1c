"""The parts of the policy: Erlang's formula, keep-alive windows, stabilisation, start-up times, spread over
specifications.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import event, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nvcf_autoscaler.policy.demand import slots_for
from nvcf_autoscaler.policy.idle import Gaps, make_plan
from nvcf_autoscaler.policy.settings import DEFAULT_TUNING
from nvcf_autoscaler.policy.stabilisation import Recommendations, record, stabilised
from nvcf_autoscaler.policy.startup import Startup, estimate, hedged_starts, overdue


def _waiting_share(load: float, slots: int) -> float:
    """Erlang's formula as the textbook has it."""
    terms = sum(load**k / math.factorial(k) for k in range(slots))
    last = load**slots / math.factorial(slots) * slots / (slots - load)
    return last / (terms + last)


@pytest.mark.parametrize("load", [0.3, 1.0, 4.7, 20.0, 60.0])
@pytest.mark.parametrize("patience", [0.0, 0.5, 5.0])
def test_slots_keep_the_share_that_waits_too_long_below_the_limit(load: float, patience: float) -> None:
    slots = slots_for(load, patience, 0.01)

    assert slots > load
    assert _waiting_share(load, slots) * math.exp(-(slots - load) * patience) <= 0.01
    # Not more than needed, but for the grid on which loads are rounded up.
    higher = load * 1.021
    if slots - 1 > higher:
        assert _waiting_share(higher, slots - 1) * math.exp(-(slots - 1 - higher) * patience) > 0.01


@given(st.floats(0, 1500), st.floats(0, 300), st.floats(0, 60))
def test_slots_grow_with_the_load(load: float, more: float, patience: float) -> None:
    assert slots_for(load, patience, 0.01) <= slots_for(load + more, patience, 0.01)


IDLE_TIMES = st.lists(st.floats(0.1, 20000), max_size=60) | st.builds(
    lambda period, jitter: [period + each for each in jitter],
    st.floats(60, 7200),
    st.lists(st.floats(0, 5), min_size=8, max_size=48),
)


@given(IDLE_TIMES, st.floats(0.5, 300), st.floats(0, 20))
@examples(max_examples=100)
def test_keep_plans_stay_within_their_bounds(idle: list[float], start: float, price: float) -> None:
    plan = make_plan(Gaps().adding(idle), start, price, DEFAULT_TUNING)

    assert DEFAULT_TUNING.keep_min <= plan.keep <= DEFAULT_TUNING.keep_max
    event(f"pre-warming window: {plan.warm_from is not None}")
    if plan.warm_from is not None:
        assert plan.warm_until is not None
        assert plan.keep <= plan.warm_from < plan.warm_until <= DEFAULT_TUNING.prewarm_max


def test_short_idle_times_are_bridged_and_long_ones_are_not() -> None:
    short = make_plan(Gaps().adding([12.0, 9.0, 20.0, 15.0] * 8), 30.0, 1.0, DEFAULT_TUNING)
    long = make_plan(Gaps().adding([900.0, 1500.0, 4000.0, 700.0] * 8), 30.0, 1.0, DEFAULT_TUNING)

    assert short.keep > 20.0
    assert long.keep < 30.0


def test_a_regular_idle_time_opens_a_narrow_window() -> None:
    plan = make_plan(Gaps().adding([598.0, 602.0, 600.0, 601.0, 599.0] * 3), 30.0, 1.0, DEFAULT_TUNING)

    assert plan.keep < 30.0
    assert plan.warm_from is not None
    assert plan.warm_until is not None
    assert 540.0 < plan.warm_from < 570.0
    assert 600.0 < plan.warm_until < 620.0


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0.1, 100)), min_size=1, max_size=40))
def test_recommendations_remember_when_each_instance_was_last_needed(steps: list[tuple[int, float]]) -> None:
    """Against the plain way to keep it: one instant for each instance."""
    past: Recommendations = ()
    last: dict[int, float] = {}
    now = 0.0
    for needed, passed in steps:
        now += passed
        past, gaps = record(past, needed, now)
        assert all(gap > 0 for gap in gaps)
        for count in range(1, needed + 1):
            last[count] = now
        for keep in (5.0, 50.0):
            expected = max((count for count, at in last.items() if at + keep > now), default=0)
            assert stabilised(past, now, keep, keep)[0] == expected


def test_start_up_times_are_learnt_and_late_ones_counted() -> None:
    assert estimate((), 30.0, 1.5).usual == 30.0
    learnt = estimate((20.0, 20.0, 20.0, 80.0), 30.0, 1.5)
    assert 20.0 < learnt.usual < 35.0
    assert overdue((0.0, 90.0), 100.0, 60.0) == 1


@given(st.integers(0, 1000), st.floats(0, 2), st.floats(0, 10))
def test_hedged_starts_are_never_more_than_the_waiting_requests(
    waiting: int, spread: float, price: float
) -> None:
    count = hedged_starts(waiting, Startup(30.0, 45.0, spread), price)

    assert 1 <= count <= max(1, min(8, waiting))
