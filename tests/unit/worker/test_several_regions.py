"""Which region is asked when, and how what finds no slot goes back."""

from __future__ import annotations

from nvcf_worker.queue.inflight import slotless_delay
from nvcf_worker.queue.planner import NOTHING_AFTER, PullPlanner


def test_a_region_is_empty_when_a_pull_stays_without_an_answer() -> None:
    planner = PullPlanner(4)
    assert not planner.has_nothing(10.0), "not asked yet"
    assert planner.ask(2, 10.0) == 2
    assert not planner.has_nothing(10.0)
    planner.delivered(10.001)
    planner.delivered(10.002)
    assert not planner.has_nothing(11.0), "it gave all that was asked for: it may have more"
    planner.ask(4, 11.0)
    assert planner.has_nothing(11.0 + 2 * NOTHING_AFTER)


def test_a_region_that_must_not_be_asked_counts_as_empty() -> None:
    planner = PullPlanner(1)
    planner.status(400, "bad request", pending=None, batch=1, now=5.0)
    assert planner.has_nothing(5.1)


def test_what_finds_no_slot_waits_longer_each_time() -> None:
    delays = [slotless_delay(attempt) for attempt in range(1, 5)]
    assert delays == sorted(delays)
    assert delays[0] <= 0.2, "the first one may find another worker at once"
    assert sum(delays) > 5, "the deliveries must outlast a burst"
    assert slotless_delay(1000) < 60
