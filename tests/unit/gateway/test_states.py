"""The states of a request whose response is taken here: table, and any order of events."""

from __future__ import annotations

import pytest
from hypothesis import event as seen
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvcf_gateway.exchange.states import Event, State, transition

W, S, D, T, A = State.WAITING, State.STREAMING, State.DETACHED, State.STORING, State.ANSWERED

TABLE: dict[Event, tuple[State | None, ...]] = {
    # from        W     S     D     T     A
    Event.INLINE: (A, None, A, None, None),
    Event.HEAD: (S, None, T, None, None),
    Event.FINISHED: (None, A, None, A, None),
    Event.PROGRESS: (None, A, D, D, None),
    Event.BROKE: (None, A, None, D, None),
    Event.REJECTED: (A, None, A, None, None),
    Event.EXPIRED: (A, A, None, None, None),
    Event.LEFT: (D, T, D, T, None),
    Event.WITHDRAWN: (A, A, A, A, None),
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize(("index", "state"), list(enumerate((W, S, D, T, A))))
def test_table(event: Event, index: int, state: State) -> None:
    assert transition(state, event) is TABLE[event][index]


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, a caller sees one response at most, and none after it has left."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.WAITING
        self.caller_there = True
        self.shown = 0

    @rule(event=st.sampled_from(Event))
    def happens(self, event: Event) -> None:
        before, after = self.state, transition(self.state, event)
        if after is None:
            return
        seen(f"{before.name} {event.name}")
        if before in (State.WAITING, State.STREAMING) and event in (Event.INLINE, Event.FINISHED):
            assert self.caller_there
            self.shown += 1
        if event is Event.LEFT:
            self.caller_there = False
        self.state = after

    @invariant()
    def one_response_at_most(self) -> None:
        assert self.shown <= 1
        if self.shown:
            assert self.state is State.ANSWERED

    @invariant()
    def the_state_says_whether_the_caller_is_there(self) -> None:
        if self.state in (State.WAITING, State.STREAMING):
            assert self.caller_there
        if self.state in (State.DETACHED, State.STORING):
            assert not self.caller_there

    @invariant()
    def it_can_always_end(self) -> None:
        assert self.state is State.ANSWERED or transition(self.state, Event.WITHDRAWN) is State.ANSWERED


TestAnyOrder = AnyOrder.TestCase
