"""Counters out of samples and reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.controller.version_state import Arrivals, GatewayTime, SlotTime
from nvcf_proto.compute import DemandReport
from tests.unit.autoscaler.records import VERSION


@given(st.lists(st.integers(0, 10_000)))
def test_arrivals_only_grow(samples: list[int]) -> None:
    arrivals = Arrivals()
    before = 0
    for sample in samples:
        arrivals.sample(sample)
        assert arrivals.count >= before
        before = arrivals.count


@given(st.lists(st.integers(0, 100)), st.integers(0, 1000))
def test_arrivals_count_what_comes_however_often_the_queue_is_sampled(steps: list[int], before: int) -> None:
    arrivals = Arrivals()
    arrivals.sample(before)
    total = before
    for step in steps:
        total += step
        arrivals.sample(total)
        arrivals.sample(total)
    assert arrivals.count == total


def test_a_queue_that_was_made_anew_counts_on() -> None:
    arrivals = Arrivals()
    for stored in (5, 0, 3):
        arrivals.sample(stored)
    assert arrivals.count == 8


def report(gateway: str, at: float, arrivals: int, busy_seconds: float) -> DemandReport:
    return DemandReport(gateway, VERSION, at, arrivals, 0, 0, busy_seconds)


def test_reports_that_come_late_or_twice_add_nothing() -> None:
    time = GatewayTime()
    for each in (report("a", 1.0, 1, 10.0), report("a", 2.0, 3, 12.0), report("a", 1.5, 2, 11.0)):
        time.add(each)
        time.add(each)
    # Where the first report begins is not known: only differences count.
    assert time.seconds == 2.0


def test_gateways_add_up_and_may_start_again() -> None:
    time = GatewayTime()
    for each in (
        report("a", 1.0, 5, 10.0),
        report("b", 1.0, 5, 100.0),
        report("a", 2.0, 6, 11.0),
        report("b", 2.0, 6, 103.0),
        report("a", 3.0, 1, 0.5),
    ):
        time.add(each)
    assert time.seconds == 1.0 + 3.0 + 0.5


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_integrals_never_fall_and_idle_time_adds_nothing(samples: list[tuple[float, int, int]]) -> None:
    time, now = SlotTime(), 0.0
    for passed, in_flight, slots in samples:
        now += passed
        before = (time.busy_seconds, time.slot_seconds)
        time.sample(now, in_flight, slots)
        assert time.busy_seconds >= before[0]
        assert time.slot_seconds >= before[1]
    busy = time.busy_seconds
    time.sample(now, 0, 0)
    time.sample(now + 100, 0, 0)
    assert time.busy_seconds == pytest.approx(busy)
