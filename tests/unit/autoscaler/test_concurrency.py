"""Instances that take fewer requests at once than their deployment allows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.policy.concurrency import FORGET_SECONDS, Concurrency
from nvcf_autoscaler.policy.decide import Decision, decide
from nvcf_autoscaler.policy.state import PolicyState
from tests.unit.autoscaler.helpers import observe, settings

DECLARED = 64
SERVICE = 0.5


def overload(taken: int, rate: float, seconds: int) -> list[Decision]:
    """Decide every second: `rate` requests a second, and one instance that takes `taken` at once."""
    state, decisions, completed, busy = PolicyState(), [], 0.0, 0.0
    for second in range(1, seconds + 1):
        arrivals = round(rate * second)
        in_flight = min(taken, arrivals - round(completed))
        completed += min(taken / SERVICE, rate)
        busy += in_flight
        completions = min(round(completed), arrivals - in_flight)
        seen = observe(
            1,
            queued=arrivals - completions - in_flight,
            in_flight=in_flight,
            arrivals=arrivals,
            completions=completions,
            busy_seconds=busy,
            busy_since=0.0,
        )
        decisions.append(decide(float(second), seen, settings((0, 16), slots=DECLARED), state))
        state = decisions[-1].state
    return decisions


def test_requests_that_wait_beside_free_slots_start_instances() -> None:
    decisions = overload(taken=8, rate=32.0, seconds=40)

    assert decisions[-1].total >= 2
    assert "instances take 8 of 64 requests at once" in decisions[-1].reason


def test_an_instance_that_keeps_up_stays_alone() -> None:
    decisions = overload(taken=8, rate=10.0, seconds=40)

    assert {decision.total for decision in decisions} == {1}
    assert decisions[-1].state.concurrency.share == 1.0


def test_requests_on_their_way_are_no_queue() -> None:
    """At 1,000 requests a second some are always on their way to a worker."""
    found = Concurrency()
    for second in range(60):
        seen = observe(1, queued=3, in_flight=5, completions=1000 * second)
        found = found.after(float(second), seen, settings(slots=DECLARED), 0.005)

    assert found.share == 1.0


def test_starting_instances_may_be_what_requests_wait_for() -> None:
    found = Concurrency()
    for second in range(60):
        seen = observe(1, queued=100, in_flight=5, starting=(0.0,))
        found = found.after(float(second), seen, settings(slots=DECLARED), 1.0)

    assert found.share == 1.0


def test_it_is_forgotten_when_few_slots_are_in_use() -> None:
    known, deployment = Concurrency(0.125, 0.0), settings(slots=DECLARED)
    assert deployment.slots == DECLARED

    busy = known.after(FORGET_SECONDS + 1, observe(1, in_flight=4), deployment, 1.0)
    calm = known.after(FORGET_SECONDS + 1, observe(1, in_flight=1), deployment, 1.0)
    more = known.after(1.0, observe(1, in_flight=16), deployment, 1.0)

    assert (busy.share, calm.share, more.share) == (0.125, 1.0, 0.25)
    assert busy.applied(deployment).slots == 8


@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 200), st.integers(0, 80), st.integers(0, 3))),
    st.floats(0.001, 100),
)
def test_the_share_is_never_below_what_is_in_use(
    steps: list[tuple[float, int, int, int]], service: float
) -> None:
    now, found, deployment = 0.0, Concurrency(), settings(slots=DECLARED)
    for seconds, queued, in_flight, running in steps:
        now += seconds
        found = found.after(now, observe(running, queued=queued, in_flight=in_flight), deployment, service)
        assert 0 < found.share <= 1
        assert found.share * DECLARED * running >= min(in_flight, DECLARED * running) - 1e-9
        assert found.applied(deployment).slots >= 1
