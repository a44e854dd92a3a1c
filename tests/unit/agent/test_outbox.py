"""Which calls are due, and what their answers mean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvcf_agent.icms.answers import Outcome, of_acknowledgement, of_report
from nvcf_agent.icms.outbox import Outbox
from nvcf_agent.icms.reports import Key, Wanted
from nvcf_agent.timings import Timings, growing_pause
from nvcf_proto.icms.reports import InstanceState, StatusReport

KEY = Key("r", "0-sr-r")
TIMES = Timings()


def report(state: InstanceState = InstanceState.STARTING) -> StatusReport:
    return StatusReport(status="fulfilled", instance_state=state)


def wanted(state: InstanceState = InstanceState.STARTING) -> dict[Key, Wanted]:
    return {KEY: Wanted(report(state), 0.0)}


def test_a_change_is_due_at_once_and_the_same_again_after_a_while() -> None:
    box = Outbox(TIMES)
    assert box.due(wanted(), 0.0) == [KEY]
    assert box.due(wanted(), 0.0) == [], "it is on its way"
    box.taken(KEY, report(), 1.0)
    box.release(KEY)
    assert box.due(wanted(), 2.0) == []
    assert box.next_due(wanted()) == 301.0
    assert box.due(wanted(InstanceState.RUNNING), 2.0) == [KEY]
    box.release(KEY)
    assert box.due(wanted(), 301.0) == [KEY]


def test_a_change_during_a_call_follows_it() -> None:
    box = Outbox(TIMES)
    assert box.due(wanted(), 0.0) == [KEY]
    running = wanted(InstanceState.RUNNING)
    assert box.due(running, 0.1) == []
    assert box.next_due(running) == float("inf")
    box.taken(KEY, report(), 0.2)
    box.release(KEY)
    assert box.due(running, 0.2) == [KEY]


def test_failures_are_tried_again_after_growing_pauses() -> None:
    box, now, pauses = Outbox(TIMES), 0.0, []
    for _ in range(8):
        assert box.due(wanted(), now) == [KEY]
        box.failed(KEY, now, 0.999)
        box.release(KEY)
        pauses.append(box.next_due(wanted()) - now)
        now = box.next_due(wanted())
    assert [round(each) for each in pauses] == [3, 6, 12, 24, 48, 60, 60, 60]
    box.recovered()
    assert box.next_due(wanted()) == 0.0


def test_what_the_control_plane_never_heard_of_is_told_again_and_what_is_gone_is_forgotten() -> None:
    box = Outbox(TIMES)
    box.due(wanted(), 0.0)
    box.taken(KEY, report(), 0.0)
    box.release(KEY)
    box.repeat("other")
    assert box.due(wanted(), 1.0) == []
    box.repeat("r")
    assert box.due(wanted(), 1.0) == [KEY]
    box.release(KEY)
    assert box.due({}, 2.0) == []


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_stay_within_their_bounds(failures: int, chance: float) -> None:
    assert 1.5 <= growing_pause(3.0, 60.0, failures, chance) <= 60.0


class Calls(RuleBasedStateMachine):
    """One instance whose state changes while calls succeed and fail in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.box = Outbox(TIMES)
        self.now = 0.0
        self.state = InstanceState.STARTING
        self.calling: StatusReport | None = None
        self.known: list[InstanceState] = []

    @rule(seconds=st.floats(0, 400))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(state=st.sampled_from(InstanceState))
    def change(self, state: InstanceState) -> None:
        self.state = state

    @rule()
    def ask(self) -> None:
        if self.box.due(wanted(self.state), self.now):
            assert self.calling is None, "two calls of one instance at once"
            self.calling = report(self.state)

    @precondition(lambda self: self.calling is not None)
    @rule(works=st.booleans())
    def answer(self, works: bool) -> None:
        assert self.calling is not None
        if works:
            self.known.append(self.calling.instance_state)
            self.box.taken(KEY, self.calling, self.now)
        else:
            self.box.failed(KEY, self.now, 0.5)
        self.box.release(KEY)
        self.calling = None

    @invariant()
    def what_is_not_known_there_is_due_soon(self) -> None:
        if self.calling is None and (not self.known or self.known[-1] is not self.state):
            assert self.box.next_due(wanted(self.state)) <= self.now + TIMES.retry_longest


TestCalls = Calls.TestCase


@pytest.mark.parametrize(
    ("status", "age", "outcome"),
    [
        (200, 0.0, Outcome.DONE),
        (201, 0.0, Outcome.RETRY),
        (404, 299.0, Outcome.RETRY),
        (404, 300.0, Outcome.CLOSED),
        (412, 0.0, Outcome.CLOSED),
        (401, 1e6, Outcome.RETRY),
        (503, 1e6, Outcome.RETRY),
        (None, 1e6, Outcome.RETRY),
    ],
)
def test_answers_to_an_acknowledgement(status: int | None, age: float, outcome: Outcome) -> None:
    assert of_acknowledgement(status, age=age, unknown_for=300.0) is outcome


@pytest.mark.parametrize(
    ("status", "terminated", "outcome"),
    [
        (200, False, Outcome.DONE),
        (202, True, Outcome.RETRY),
        (404, True, Outcome.DONE),
        (409, True, Outcome.DONE),
        (412, True, Outcome.DONE),
        (500, True, Outcome.DONE),
        (503, True, Outcome.RETRY),
        (None, True, Outcome.RETRY),
        (412, False, Outcome.CLOSED),
        (404, False, Outcome.RETRY),
        (409, False, Outcome.RETRY),
        (500, False, Outcome.RETRY),
    ],
)
def test_answers_to_a_report(status: Any, terminated: bool, outcome: Outcome) -> None:
    assert of_report(status, terminated=terminated) is outcome
