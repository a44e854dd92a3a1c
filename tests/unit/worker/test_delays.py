"""Timing decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_worker.control.registration import refresh_delay
from nvcf_worker.process.durations import Backoff, in_progress_interval
from nvcf_worker.queue.connect import RECONNECT_BACKOFF, choose_server

RANDOMNESS = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 10_000), RANDOMNESS)
def test_delays_stay_within_their_limit(attempt: int, randomness: float) -> None:
    backoff = Backoff(first=0.1, limit=15.0)
    assert 0 < backoff.delay(attempt, randomness) <= 15.0
    assert backoff.delay(attempt, 0.0) <= backoff.delay(attempt + 1, 0.0)


@pytest.mark.parametrize(
    ("life", "randomness", "expected"),
    [
        (3 * 3600, 0.0, 20 * 60),
        (3 * 3600, 0.5, 25 * 60),
        (600, 0.5, 540),
        (None, 0.0, 20 * 60),
        (0, 0.5, 0),
        (-5, 0.5, 0),
    ],
)
def test_the_refresh_schedule(life: float | None, randomness: float, expected: float) -> None:
    assert refresh_delay(1000.0, None if life is None else 1000.0 + life, randomness) == pytest.approx(
        expected
    )


@given(st.floats(0, 1e9), st.floats(0, 1e6), RANDOMNESS)
def test_a_token_is_renewed_before_it_expires(now: float, life: float, randomness: float) -> None:
    delay = refresh_delay(now, now + life, randomness)
    assert 0 <= delay <= 30 * 60
    assert delay <= life * 0.9 + 1e-3


@pytest.mark.parametrize(("ack_wait", "expected"), [(30.0, 10.0), (300.0, 10.0), (6.0, 2.0)])
def test_the_in_progress_interval(ack_wait: float, expected: float) -> None:
    assert in_progress_interval(ack_wait) == expected


def test_reconnects_try_the_server_that_failed_least() -> None:
    from urllib.parse import urlparse

    from nats.aio.client import Server

    servers = [Server(urlparse("nats://a:1"), 3), Server(urlparse("nats://b:1"), 1)]
    server, delay = choose_server(servers, 0.0)
    assert server is servers[1]
    assert delay == RECONNECT_BACKOFF.delay(1, 0.0)
    assert choose_server([Server(urlparse("nats://a:1"), 10_000)], 0.0)[1] == 15.0
