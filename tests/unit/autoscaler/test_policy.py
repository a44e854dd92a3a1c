"""What a deployment's owner relies on: when instances start, stay and end, and that the reason is given."""

from __future__ import annotations

import pytest

from nvcf_autoscaler.errors import InvalidSettings
from nvcf_autoscaler.policy.decide import decide
from nvcf_autoscaler.policy.observation import Activity, Observation, SpecificationObservation
from nvcf_autoscaler.policy.settings import (
    ScalingDetails,
    ScalingSettings,
    SpecificationSettings,
    Stickiness,
)
from nvcf_autoscaler.policy.state import PolicyState
from tests.unit.autoscaler.helpers import observe, settings


def test_nothing_to_do_at_zero() -> None:
    decision = decide(0.0, observe(0, idle_since=0.0), settings(), PolicyState())

    assert decision.total == 0
    assert decision.requeue_at == float("inf")
    assert "nothing queued" in decision.reason


def test_the_first_request_starts_an_instance_at_once() -> None:
    decision = decide(100.0, observe(0, queued=1, busy_since=100.0), settings(), PolicyState())

    assert decision.total == 1
    assert "1 queued" in decision.reason


def test_a_burst_is_drained_within_the_slo_once_instances_are_ready() -> None:
    seen = observe(0, queued=500, completions=1000, busy_seconds=1000.0, busy_since=0.0, arrivals=1500)

    decision = decide(0.0, seen, settings((0, 1000)), PolicyState())

    # Growth is limited at first; what is allowed is asked for.
    assert decision.total == 32
    assert "allowed within" in decision.reason


def test_starting_instances_count() -> None:
    seen = observe(0, queued=2, starting=(95.0, 95.0), busy_since=95.0)

    assert decide(100.0, seen, settings(), PolicyState()).total == 2


def test_a_start_up_that_takes_far_too_long_is_replaced_while_requests_wait() -> None:
    seen = observe(0, queued=1, starting=(0.0,), busy_since=0.0)

    decision = decide(100.0, seen, settings(), PolicyState())

    assert decision.total == 2
    assert "older than" in decision.reason


def test_an_idle_instance_is_kept_for_a_while_and_then_given_up() -> None:
    chosen = settings()
    state = decide(10.0, observe(1, in_flight=1, busy_since=10.0), chosen, PolicyState()).state
    idle = observe(1, completions=1, busy_seconds=1.0, idle_since=11.0)

    kept = decide(11.5, idle, chosen, state)
    gone = decide(kept.requeue_at + 0.01, idle, chosen, kept.state)

    assert kept.total == 1
    assert "kept until unneeded" in kept.reason
    assert 11.5 < kept.requeue_at < 3600
    assert gone.total == 0


def test_a_new_leader_without_memory_does_not_end_what_runs() -> None:
    chosen = settings()
    seen = observe(5, in_flight=1, busy_since=0.0)

    first = decide(100.0, seen, chosen, PolicyState())
    later = decide(100.0 + 3600.0, seen, chosen, first.state)

    assert first.total == 5
    assert later.total == 1


def test_what_is_only_kept_is_not_started_again() -> None:
    chosen = settings()
    busy = observe(4, in_flight=4, busy_since=0.0)
    state = decide(10.0, busy, chosen, decide(0.0, busy, chosen, PolicyState()).state).state
    kept = decide(
        10.5, observe(4, completions=3, busy_seconds=40.0, in_flight=1, busy_since=0.0), chosen, state
    )
    fewer = observe(2, completions=3, busy_seconds=40.0, in_flight=1, busy_since=0.0)

    assert kept.total == 4
    assert decide(10.5, fewer, chosen, state).total == 2


def test_a_fixed_scale_to_zero_delay_is_kept_to_the_second() -> None:
    chosen = ScalingSettings((SpecificationSettings("gpu0", 0, 4),), scale_to_zero_delay=77.0)
    state = decide(10.0, observe(1, in_flight=1, busy_since=10.0), chosen, PolicyState()).state

    decision = decide(12.0, observe(1, completions=1, idle_since=11.0), chosen, state)

    assert decision.requeue_at == pytest.approx(88.0)


def test_after_a_burst_the_delay_counts_from_the_last_request() -> None:
    """Not from when the burst has left the arrival rate, a minute later."""
    chosen = ScalingSettings((SpecificationSettings("gpu0", 0, 4),), scale_to_zero_delay=3.0)
    state = PolicyState()
    for second in range(10):
        done = 12 * second
        burst = observe(
            4, queued=120 - done - 4, in_flight=4, arrivals=120, completions=done, busy_seconds=4.0 * second,
            busy_since=0.0,
        )  # fmt: skip
        state = decide(float(second), burst, chosen, state).state
    idle = observe(4, arrivals=120, completions=120, busy_seconds=40.0, idle_since=10.0)

    first = decide(10.0, idle, chosen, state)
    between = decide(first.requeue_at + 0.01, idle, chosen, first.state)
    last = decide(13.01, idle, chosen, between.state)

    assert first.total >= 1
    assert last.total == 0


def test_a_timer_is_learnt_and_the_instance_is_warm_ahead_of_it() -> None:
    """Every ten minutes one request: given up soon after it, started again shortly before the next."""
    chosen = settings()
    state = PolicyState()
    served = 0
    for number in range(1, 21):
        at = 600.0 * number
        queued = observe(
            0, queued=1, completions=served, busy_seconds=served * 1.0, busy_since=at, idle_before=599.0
        )
        state = decide(at, queued, chosen, state).state
        served += 1
        idle = observe(1, completions=served, busy_seconds=served * 1.0, idle_since=at + 1.0)
        state = decide(at + 1.0, idle, chosen, state).state
    last = 600.0 * 20 + 1.0

    def total_after(seconds: float) -> int:
        seen = observe(0, completions=served, busy_seconds=served * 1.0, idle_since=last)
        return decide(last + seconds, seen, chosen, state).total

    assert total_after(300.0) == 0
    assert total_after(575.0) == 1
    assert total_after(700.0) == 0


def test_minimum_and_keep_warm_are_floors() -> None:
    idle = observe(0, idle_since=0.0)

    assert decide(0.0, idle, settings((2, 8)), PolicyState()).total == 2
    assert decide(0.0, idle, settings((0, 8), keep_warm=3), PolicyState()).total == 3


def test_what_finds_no_capacity_spills_to_the_next_specification() -> None:
    seen = observe(2, 0, queued=60, in_flight=2, available=1, busy_since=0.0)

    decision = decide(0.0, seen, settings((0, 8), (0, 8)), PolicyState())

    assert decision.desired[0].instances == 3
    assert decision.desired[1].instances > 0
    assert "less preferred" in decision.reason


def test_spilled_instances_stay_when_the_preferred_kind_has_room_again() -> None:
    seen = observe(2, 3, in_flight=5, available=6, busy_since=0.0)

    decision = decide(0.0, seen, settings((0, 8), (0, 8)), PolicyState())

    assert [part.instances for part in decision.desired] == [2, 3]


def test_missing_capacity_is_told() -> None:
    seen = observe(1, queued=60, in_flight=1, available=0, busy_since=0.0)

    decision = decide(0.0, seen, settings(), PolicyState())

    assert decision.total == 1
    assert decision.missing == 15
    assert decision.reason.endswith("16 at most, by the deployment; no capacity for 15 more instances")


def test_a_number_of_one_is_said_in_the_singular() -> None:
    seen = observe(0, queued=1, busy_since=0.0, available=0)

    reason = decide(0.0, seen, settings(), PolicyState()).reason

    assert reason == (
        "0 instances: 1 queued and 0 in flight at 2 s each (none has ended yet): "
        "1 more slot for a start within 5 s; no capacity for 1 more instance"
    )


def test_custom_details_scale_by_utilisation() -> None:
    chosen = ScalingSettings(
        (SpecificationSettings("gpu0", 0, 10),),
        scale_up=ScalingDetails(2.0, 75, Stickiness(60.0, 20.0)),
        scale_down=ScalingDetails(0.5, 25),
    )
    state = PolicyState()
    total = 0
    for step in range(8):
        now = step * 10.0
        seen = observe(2, in_flight=2, busy_since=0.0, busy_seconds=2 * now)
        seen = type(seen)(
            seen.arrivals, 0, 2 * now, 0, 2, seen.specifications, Activity(None, 0.0), (), 2 * now, 2 * now
        )
        decision = decide(now, seen, chosen, state)
        state, total = decision.state, decision.total
        if total > 2:
            break

    assert total == 4
    assert "above 75 %" in decision.reason


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: SpecificationSettings("a", 3, 2), "minInstances 3"),
        (lambda: ScalingSettings(()), "at least one"),
        (lambda: ScalingSettings((SpecificationSettings("a"), SpecificationSettings("a"))), "differ"),
        (lambda: ScalingSettings((SpecificationSettings("a"),), wait_slo=0), "wait SLO"),
        (lambda: Stickiness(60.0, 60.0), "below the size"),
        (
            lambda: ScalingSettings((SpecificationSettings("a"),), scale_up=ScalingDetails(2.0, 80)),
            "together",
        ),
        (lambda: ScalingDetails(2.0, 80, metric="cpu"), "unknown"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(wrong: object, text: str) -> None:
    assert callable(wrong)
    with pytest.raises(InvalidSettings, match=text):
        wrong()


def test_what_a_decision_learns_does_not_change_that_decision() -> None:
    """Found by the property test: a burst counted now made a second decision want one more instance."""
    settings = ScalingSettings((SpecificationSettings("a", 0, 2, 1),), wait_slo=1.0)

    def seen(queued: int, in_flight: int) -> Observation:
        specifications = (SpecificationObservation("a"),)
        return Observation(queued, 0, 0.0, queued, in_flight, specifications, Activity(None, 1.0))

    state = decide(1.0, seen(0, 8), settings, PolicyState()).state
    once = decide(31.0, seen(1, 0), settings, state)
    assert decide(31.0, seen(1, 0), settings, once.state).desired == once.desired
