"""States of one instance."""

from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent import lifecycle
from nvcf_agent.desired import Slot
from nvcf_agent.lifecycle import RESTARTS, Lifecycle
from nvcf_proto.models import InstanceState

SLOT = Slot()


def fresh() -> Lifecycle:
    return lifecycle.new_instance("i", function_id="f", version_id="v", cluster="c", wall=1.0)


def started(state: Lifecycle, now: float = 0.0) -> Lifecycle:
    state = lifecycle.starting(state, SLOT, now=now, wall=now)
    return lifecycle.has_process(state, pid=7, health_port=8, log_path="/log", wall=now)


def test_a_good_life() -> None:
    state = started(fresh())
    assert (state.state, state.record.pid, state.record.restarts) == (InstanceState.STARTING, 7, 0)
    state = lifecycle.ready(state, 5.0)
    assert (state.state, state.record.ready_at) == (InstanceState.RUNNING, 5.0)
    state = lifecycle.terminating(state, "undeployed", 6.0)
    assert state.state is InstanceState.TERMINATING
    state = lifecycle.ended(state, "exit code 0", now=7.0, wall=7.0)
    assert (state.state, state.has_process, state.record.reason) == (
        InstanceState.COMPLETED,
        False,
        "undeployed",
    )


def test_a_crash_restarts_at_once_and_then_later_and_later() -> None:
    state, delays = fresh(), []
    for now in range(4):
        state = lifecycle.ended(started(state, float(now)), "exit code 1", now=float(now), wall=0.0)
        assert state.state is InstanceState.FAILED
        delays.append(state.retry_at - now)
    assert delays == [0.0, 0.5, 1.0, 2.0]
    assert state.record.restarts == 3


def test_the_delay_starts_again_after_a_long_run() -> None:
    state = fresh()
    for _ in range(5):
        state = lifecycle.ended(started(state), "x", now=0.0, wall=0.0)
    state = lifecycle.ended(started(state, 0.0), "x", now=RESTARTS.stable_after, wall=0.0)
    assert state.retry_at == RESTARTS.stable_after


def test_a_refused_start_is_no_restart_and_retried_soon() -> None:
    state = lifecycle.starting(fresh(), SLOT, now=0.0, wall=0.0)
    state = lifecycle.refused(state, "no token", now=0.0, wall=0.0)
    assert (state.state, state.record.reason, state.record.restarts) == (InstanceState.PENDING, "no token", 0)
    assert 0 < state.retry_at <= 3
    state = lifecycle.ready(started(state), 1.0)
    assert (state.record.restarts, state.record.reason) == (0, None)


def test_an_adopted_instance_waits_for_a_new_process() -> None:
    running = lifecycle.ready(started(fresh()), 1.0).record
    state = lifecycle.adopted(running, 2.0)
    assert (state.state, state.has_process, state.record.pid) == (InstanceState.PENDING, False, None)
    assert started(state).record.restarts == 1
    leaving = lifecycle.terminating(Lifecycle(running), "x", 1.0).record
    assert lifecycle.adopted(leaving, 2.0).state is InstanceState.TERMINATING


def test_stopping_keeps_what_is_leaving() -> None:
    running = lifecycle.ready(started(fresh()), 1.0)
    assert lifecycle.stopped(running, 2.0).state is InstanceState.PENDING
    leaving = lifecycle.terminating(running, "x", 1.0)
    assert lifecycle.stopped(leaving, 2.0) is leaving


def test_a_late_ready_changes_nothing() -> None:
    for state in (fresh(), lifecycle.terminating(started(fresh()), "x", 1.0)):
        assert lifecycle.ready(state, 2.0) is state


@given(st.lists(st.sampled_from(["start", "ready", "end", "refuse", "terminate", "stop"]), max_size=20))
def test_no_order_of_events_revives_what_is_leaving(events: list[str]) -> None:
    state, leaving = fresh(), False
    for now, event in enumerate(events):
        if event == "start" and not state.is_ending and not state.has_process:
            state = started(state, float(now))
        elif event == "ready":
            state = lifecycle.ready(state, float(now))
        elif event == "end":
            state = lifecycle.ended(state, "exit code 1", now=float(now), wall=float(now))
        elif event == "refuse" and not state.has_process:
            state = lifecycle.refused(state, "x", now=float(now), wall=float(now))
        elif event == "terminate":
            state, leaving = lifecycle.terminating(state, "x", float(now)), True
        elif event == "stop":
            state = lifecycle.stopped(state, float(now))
        assert state.is_ending == leaving
        assert (state.state is InstanceState.RUNNING) <= state.has_process
