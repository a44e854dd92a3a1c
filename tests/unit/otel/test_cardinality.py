"""A process with any number of functions has a bounded number of attribute values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvcf_otel.cardinality import OTHER, Bounded


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_first_come_are_let_through_and_the_rest_is_other() -> None:
    bounded = Bounded(limit=1000, clock=Clock())
    values = [bounded.value(str(number)) for number in range(10_000)]
    assert values[:1000] == [str(number) for number in range(1000)]
    assert set(values[1000:]) == {OTHER}
    assert bounded.value("7") == "7"


def test_idle_ones_make_room_and_listeners_hear_of_it() -> None:
    clock, released = Clock(), list[str]()
    bounded = Bounded(limit=2, idle_seconds=60, clock=clock)
    bounded.on_release(released.append)
    assert bounded.admits("idle")
    assert bounded.admits("busy")
    clock.now = 40
    assert bounded.admits("busy")
    assert not bounded.admits("new")
    clock.now = 70
    assert bounded.admits("new")
    assert released == ["idle"]
    assert bounded.value("idle") == OTHER
    assert bounded.value("busy") == "busy"


def test_one_that_is_gone_for_good_is_released_at_once() -> None:
    released = list[str]()
    bounded = Bounded(limit=1, clock=Clock())
    bounded.on_release(released.append)
    assert bounded.admits("one")
    bounded.release("one")
    bounded.release("never there")
    assert bounded.admits("two")
    assert released == ["one"]


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 100))), st.integers(1, 8))
def test_never_more_than_the_limit(uses: list[tuple[int, float]], limit: int) -> None:
    clock = Clock()
    bounded = Bounded(limit=limit, idle_seconds=30, clock=clock)
    inside = set[str]()
    bounded.on_release(inside.discard)
    for number, seconds in uses:
        clock.now += seconds
        if bounded.admits(str(number)):
            inside.add(str(number))
        assert len(inside) == len(bounded) <= limit
