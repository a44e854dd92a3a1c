"""Histories of calls, percentiles, and the statistics made from them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.stats.history import (
    BOUNDS,
    MAX_VERSIONS,
    STEP_SECONDS,
    STEPS,
    History,
    Step,
    percentile,
    step_at,
)
from nvcf_gateway.stats.snapshot import InvalidSnapshot, Recent, Snapshot, recent_json, series_json

NOW = 1_000_000.0
WAITS = st.lists(st.floats(0.00072, 4000), min_size=1, max_size=60)


def filled(seconds: list[float], version: str = "v", start: float = NOW) -> History:
    history = History(start - 60)
    for each in seconds:
        history.arrived(version, start)
        history.left(version, start, each, failed=False)
    return history


def snapshot_of(history: History, *versions: str, now: float = NOW) -> Snapshot:
    snapshot = Snapshot(since=history.since)
    for version in versions:
        snapshot.add_history(history, version, now)
    return snapshot


@given(WAITS, st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_within_a_bucket_of_the_true_one(seconds: list[float], share: float) -> None:
    snapshot = snapshot_of(filled(seconds), "v")
    found = percentile(snapshot.versions["v"].window.latencies, share)
    true = sorted(seconds)[math.ceil(share * len(seconds)) - 1]
    assert found is not None
    assert true / math.sqrt(2) * 0.999 <= found <= true * math.sqrt(2) * 1.001


def test_percentiles_rise_and_there_are_none_of_nothing() -> None:
    assert percentile({}, 0.5) is None
    latencies = {4: 10, 20: 10, 30: 1}
    found = [percentile(latencies, share / 100) or 0 for share in range(1, 101)]
    assert found == sorted(found)
    assert percentile({len(BOUNDS): 3}, 0.5) == BOUNDS[-1]


def test_calls_are_counted_by_their_outcome() -> None:
    history = History(NOW - 100)
    for _ in range(4):
        history.arrived("v", NOW)
    history.left("v", NOW, 0.2, failed=False)
    history.left("v", NOW, 0.2, failed=True)
    history.left("v", NOW, None, failed=True)
    snapshot = snapshot_of(history, "v", "unknown")
    window = snapshot.versions["v"].window
    assert (window.arrivals, window.left, window.answered, window.failed) == (4, 3, 2, 2)
    assert snapshot.versions["v"].waiting == 1
    assert snapshot.versions["unknown"] == Recent()


def test_how_many_waited_follows_from_arrivals_and_departures() -> None:
    history = History(NOW - 10_000)
    for offset, came, went in ((0, 3, 0), (5, 0, 1), (20, 1, 3)):
        for _ in range(came):
            history.arrived("v", NOW + offset)
        for _ in range(went):
            history.left("v", NOW + offset, 1.0, failed=False)
    now = NOW + 25
    series = series_json(snapshot_of(history, "v", now=now).steps, 0, history.since, now)
    assert [each["waiting"] for each in series][-6:] == [0, 3, 2, 2, 2, 0]
    assert len(series) == STEPS - 1
    assert series[-1]["at"] == NOW + 20


def test_a_series_begins_when_the_replica_started() -> None:
    history = History(NOW)
    now = NOW + 4 * STEP_SECONDS
    series = series_json(snapshot_of(history, "v", now=now).steps, 0, history.since, now)
    assert [each["at"] for each in series] == [NOW + 5, NOW + 10, NOW + 15]


def test_rates_of_a_young_gateway_are_over_its_life() -> None:
    recent = Recent(0, Step(arrivals=20, left=20, answered=20))
    assert recent_json(recent, since=NOW - 10, now=NOW)["answersPerSecond"] == 2.0
    assert recent_json(recent, since=NOW - 9000, now=NOW)["answersPerSecond"] == round(20 / 55, 3)


def test_a_history_is_bounded_in_time_and_in_versions() -> None:
    history = History(NOW)
    for number in range(STEPS + 50):
        history.arrived("v", NOW + number * STEP_SECONDS)
        history.left("v", NOW + number * STEP_SECONDS, 1.0, failed=False)
    assert len(list(history.after("v", 0))) == STEPS
    history.arrived("waits", NOW)
    for number in range(MAX_VERSIONS + 10):
        history.arrived(f"v{number}", NOW + number)
        history.left(f"v{number}", NOW + number, 1.0, failed=False)
    assert not list(history.after("v0", 0))
    assert list(history.after(f"v{MAX_VERSIONS}", 0))
    assert history.waiting("waits") == 1


def test_a_history_shrinks_again_when_many_versions_were_waited_for_at_once() -> None:
    history = History(NOW)
    names = [f"v{number}" for number in range(2 * MAX_VERSIONS)]
    for name in names:
        history.arrived(name, NOW)
    assert all(history.waiting(name) == 1 for name in names)
    for name in names:
        history.left(name, NOW + 1, 1.0, failed=False)
    history.arrived("new", NOW + 2)
    known = [name for name in [*names, "new"] if list(history.after(name, 0))]
    assert len(known) == MAX_VERSIONS
    assert known[-1] == "new"


@given(WAITS, WAITS)
def test_snapshots_of_two_replicas_add_up(one: list[float], two: list[float]) -> None:
    both = snapshot_of(filled(one + two), "v")
    first, second = snapshot_of(filled(one), "v"), snapshot_of(filled(two, start=NOW), "v")
    first.add(Snapshot.from_json(second.to_json()))
    assert first.versions == both.versions
    assert first.steps == both.steps


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"since":0,"versions":{"v":[1]},"steps":[]}',
     b'{"since":0,"versions":{},"steps":[[1,1,1,1,1,999,1]]}', b'{"since":"x","versions":{},"steps":[]}'],
)  # fmt: skip
def test_nonsense_from_another_replica_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidSnapshot):
        Snapshot.from_json(body)


def test_steps_are_numbered_by_the_clock() -> None:
    assert step_at(NOW + STEP_SECONDS) == step_at(NOW) + 1
