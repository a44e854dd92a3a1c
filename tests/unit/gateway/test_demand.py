"""Demand counters: what is reported to the autoscaler."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.queue.demand import REPEAT_REPORTS, Counter


@given(st.lists(st.tuples(st.floats(0, 10), st.sampled_from(["arrive", "answer", "leave"])), max_size=60))
def test_counters_add_up(steps: list[tuple[float, str]]) -> None:
    counter = Counter()
    now = waiting = arrivals = completions = 0.0
    busy = 0.0
    for delta, what in steps:
        now += delta
        busy += waiting * delta
        if what == "arrive":
            counter.arrived(now)
            waiting, arrivals = waiting + 1, arrivals + 1
        elif waiting:
            counter.left(now, completed=what == "answer")
            waiting -= 1
            completions += what == "answer"
    counter.advance(now)
    assert (counter.arrivals, counter.completions, counter.waiting) == (arrivals, completions, waiting)
    assert abs(counter.busy_seconds - busy) < 1e-6 * (1 + busy)


def test_reports_stop_when_nothing_changes() -> None:
    counter = Counter()
    counter.arrived(1.0)
    assert all(counter.due() for _ in range(20)), "as long as somebody waits"
    counter.left(2.0, completed=True)
    assert [counter.due() for _ in range(REPEAT_REPORTS + 2)] == [True] * REPEAT_REPORTS + [False] * 2
