"""Properties that hold for any observation."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nvcf_autoscaler.policy.decide import Decision, decide
from nvcf_autoscaler.policy.observation import Activity, Observation, SpecificationObservation
from nvcf_autoscaler.policy.settings import ScalingSettings, SpecificationSettings
from nvcf_autoscaler.policy.state import PolicyState
from tests.unit.autoscaler.helpers import observe, settings

_COUNTS = st.integers(0, 40)
_SECONDS = st.floats(0, 1e5, allow_nan=False)


@st.composite
def deployments(draw: st.DrawFn) -> ScalingSettings:
    specs = []
    for index in range(draw(st.integers(1, 3))):
        low = draw(st.integers(0, 4))
        slots = draw(st.sampled_from([1, 2, 8]))
        specs.append(SpecificationSettings(f"gpu{index}", low, low + draw(st.integers(0, 30)), slots))
    return ScalingSettings(tuple(specs), wait_slo=draw(st.floats(0.1, 60)), keep_warm=draw(st.integers(0, 3)))


@st.composite
def observations(
    draw: st.DrawFn, deployment: ScalingSettings, now: float, before: Observation | None, *, limited: bool
) -> Observation:
    """An observation with counters that did not go back since the one before."""
    specs = []
    for spec in deployment.specifications:
        starting = sorted(draw(st.lists(st.floats(0, max(now, 0.0)), max_size=4)))
        available = draw(st.integers(0, 10) if limited else st.none() | st.integers(0, 10))
        specs.append(SpecificationObservation(spec.id, draw(st.integers(0, 12)), tuple(starting), available))
    queued, in_flight = draw(_COUNTS), draw(_COUNTS)
    completions = (before.completions if before else 0) + draw(_COUNTS)
    arrivals = max(before.arrivals if before else 0, completions + queued + in_flight)
    busy = queued + in_flight > 0
    activity = (before.activity if before else Activity()).seen(now, busy)
    return Observation(
        arrivals,
        completions,
        (before.busy_seconds if before else 0.0) + draw(st.floats(0, 1e4)),
        queued,
        in_flight,
        tuple(specs),
        activity,
        tuple(draw(st.lists(st.floats(0.01, 600), max_size=5))),
    )


@st.composite
def histories(
    draw: st.DrawFn, *, limited: bool = False
) -> tuple[ScalingSettings, list[tuple[float, Observation]]]:
    """A deployment and observations of it; `limited` ones have a known capacity everywhere."""
    deployment = draw(deployments())
    now = 0.0
    found: list[tuple[float, Observation]] = []
    for _ in range(draw(st.integers(1, 8))):
        now += draw(st.floats(0.01, 900))
        before = found[-1][1] if found else None
        found.append((now, draw(observations(deployment, now, before, limited=limited))))
    return deployment, found


def _run(deployment: ScalingSettings, history: list[tuple[float, Observation]]) -> list[Decision]:
    state = PolicyState()
    decisions = []
    for now, seen in history:
        decisions.append(decide(now, seen, deployment, state))
        state = decisions[-1].state
    return decisions


@given(histories())
@examples(max_examples=150)
def test_bounds_are_kept_and_every_decision_has_a_reason(
    case: tuple[ScalingSettings, list[tuple[float, Observation]]],
) -> None:
    deployment, history = case
    for (now, _), decision in zip(history, _run(deployment, history), strict=True):
        for part, spec in zip(decision.desired, deployment.specifications, strict=True):
            assert part.specification_id == spec.id
            assert spec.min_instances <= part.instances <= spec.max_instances
        assert decision.requeue_at > now
        assert not math.isnan(decision.requeue_at)
        assert decision.missing >= 0
        assert decision.reason.startswith(f"{decision.total} instance")
        assert "nan" not in decision.reason


@given(histories(limited=True))
@examples(max_examples=100)
def test_nothing_is_asked_for_beyond_free_capacity(
    case: tuple[ScalingSettings, list[tuple[float, Observation]]],
) -> None:
    deployment, history = case
    for (_, seen), decision in zip(history, _run(deployment, history), strict=True):
        parts = zip(decision.desired, seen.specifications, deployment.specifications, strict=True)
        for part, spec, bounds in parts:
            assert spec.available is not None
            assert part.instances <= max(spec.total + spec.available, bounds.min_instances)


@given(histories())
@examples(max_examples=100)
def test_the_same_observation_gives_the_same_answer_again(
    case: tuple[ScalingSettings, list[tuple[float, Observation]]],
) -> None:
    deployment, history = case
    state = PolicyState()
    for now, seen in history:
        once = decide(now, seen, deployment, state)
        assert decide(now, seen, deployment, state) == once
        again = decide(now, seen, deployment, once.state)
        assert again.desired == once.desired
        state = once.state


@given(histories(), st.integers(1, 200))
@examples(max_examples=150)
def test_more_waiting_requests_never_want_fewer_instances(
    case: tuple[ScalingSettings, list[tuple[float, Observation]]], more: int
) -> None:
    deployment, history = case
    state = _run(deployment, history)[-1].state
    now, seen = history[-1][0] + 7.0, history[-1][1]
    activity = Activity(None, seen.activity.busy_since or now, seen.activity.idle_before)
    little = replace(seen, queued=seen.queued + 1, arrivals=seen.arrivals + 1, activity=activity)
    much = replace(little, queued=little.queued + more, arrivals=little.arrivals + more)

    fewer, greater = decide(now, little, deployment, state), decide(now, much, deployment, state)

    slots = [spec.max_request_concurrency for spec in deployment.specifications]
    assert sum(p.instances * s for p, s in zip(greater.desired, slots, strict=True)) >= sum(
        p.instances * s for p, s in zip(fewer.desired, slots, strict=True)
    )


@given(st.floats(0.2, 20), st.floats(0.2, 8), st.sampled_from([1, 2, 8]))
@examples(max_examples=30)
def test_a_constant_load_does_not_flap(rate: float, service: float, slots: int) -> None:
    """Evenly spaced requests: after the start the count settles and stays."""
    chosen = settings((0, 200), slots=slots)
    state = PolicyState()
    running = 0
    changes = 0
    for step in range(1, 400):
        now = step * 5.0
        busy = min(running * slots, round(rate * service))
        arrivals = int(rate * now)
        seen = observe(
            running,
            queued=0 if running else 1,
            in_flight=busy,
            arrivals=arrivals,
            completions=max(0, arrivals - busy),
            busy_seconds=max(0, arrivals - busy) * service,
            idle_since=None,
            busy_since=0.0,
        )
        if not busy and running:
            seen = replace(seen, activity=Activity(now - 0.1, 0.0, 0.0))
        decision = decide(now, seen, chosen, state)
        state = decision.state
        if step > 100:
            changes += decision.total != running
        running = decision.total
    assert changes <= 2


@given(st.lists(st.tuples(st.floats(0.1, 500), st.booleans()), min_size=1, max_size=30))
def test_activity_only_counts_idle_time_between_busy_times(steps: list[tuple[float, bool]]) -> None:
    activity = Activity()
    now = 0.0
    for passed, busy in steps:
        now += passed
        activity = activity.seen(now, busy)
        assert activity.seen(now, busy) == activity
        assert (activity.idle_since is None) == busy
        assert 0 <= activity.idle_before <= now
