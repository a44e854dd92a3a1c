"""AdaptiveLimit in simulated services: it finds their capacity, follows it and starves nobody."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcf_worker.errors import HandlerError
from nvcf_worker.function.adaptive import Adaptive, AdaptiveLimit

Latency = Callable[[int, float], float]


def simulate(
    limit: AdaptiveLimit, latency: Latency, seconds: float, *, offered: int = 10_000, start: float = 0.0
) -> list[tuple[float, int]]:
    """Keep `min(limit, offered)` requests in work; `latency(in_flight, now)` is that of one that starts.

    Returns (time, limit) at the end of each request.
    """
    running: list[tuple[float, float]] = []
    now, history = start, []
    while now < start + seconds:
        while len(running) < min(limit.limit, offered):
            heapq.heappush(running, (now + latency(len(running) + 1, now), now))
        now, began = heapq.heappop(running)
        limit.finished(began=began, now=now, in_flight=len(running) + 1)
        history.append((now, limit.limit))
    return history


def servers(capacity: int, service: float, seed: int = 1) -> Latency:
    """`capacity` requests run at full speed, more share it; 10 % noise."""
    noise = random.Random(seed)
    return lambda in_flight, now: service * max(1.0, in_flight / capacity) * noise.uniform(0.95, 1.05)


def settled(history: list[tuple[float, int]]) -> float:
    last = [limit for _, limit in history[-len(history) // 4 :]]
    return sum(last) / len(last)


@pytest.mark.parametrize("capacity", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("service", [0.005, 0.05, 0.5])
def test_it_settles_between_the_capacity_and_a_few_times_it(capacity: int, service: float) -> None:
    limit = AdaptiveLimit(Adaptive(min=1, max=256), 0.0)
    history = simulate(limit, servers(capacity, service), seconds=4000 * service)
    assert capacity <= settled(history) <= 3 * capacity + 8


def test_it_reaches_the_upper_bound_where_latency_does_not_suffer() -> None:
    limit = AdaptiveLimit(Adaptive(min=1, max=32), 0.0)
    simulate(limit, lambda in_flight, now: 0.01, seconds=30)
    assert limit.limit in (16, 32)  # 16 while it looks whether the latency alone has changed
    assert max(size for _, size in simulate(limit, lambda in_flight, now: 0.01, 5, start=30)) == 32


def test_it_follows_a_service_that_becomes_slower_and_faster_again() -> None:
    limit = AdaptiveLimit(Adaptive(min=1, max=256), 0.0)
    before = settled(simulate(limit, servers(16, 0.01), 60))
    fewer = settled(simulate(limit, servers(4, 0.01), 60, start=60))
    again = settled(simulate(limit, servers(16, 0.01), 60, start=120))
    assert fewer < before / 1.5
    assert again > fewer * 1.5
    # Every request slower from now on: that is no queueing, and after a probe the limit knows it.
    slower = settled(simulate(limit, servers(16, 0.1), 400, start=180))
    assert slower >= 16


def test_it_does_not_grow_unused() -> None:
    limit = AdaptiveLimit(Adaptive(min=1, max=256), 0.0)
    simulate(limit, servers(1000, 0.01), 30, offered=3)
    assert limit.limit <= 8


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 8),
    st.integers(0, 56),
    st.lists(st.floats(1e-9, 100), min_size=1, max_size=400),
    st.floats(1.01, 10),
)
def test_whatever_the_latencies_the_bounds_hold(
    low: int, more: int, latencies: list[float], tolerance: float
) -> None:
    limit = AdaptiveLimit(Adaptive(min=low, max=low + more, tolerance=tolerance), 0.0)
    now = 0.0
    for latency in latencies:
        began, now = now, now + latency
        limit.finished(began=began, now=now, in_flight=limit.limit)
        assert low <= limit.limit <= low + more


@pytest.mark.parametrize(
    "arguments",
    [{"min": 0}, {"min": 5, "max": 4}, {"max": 20_000}, {"tolerance": 1}, {"min": 2, "start": 1}],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(HandlerError, match="Adaptive"):
        Adaptive(**arguments)
