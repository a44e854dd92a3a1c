"""Metrics of the leader: ages of queues, GPU time, and snapshots of any number of versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.metrics import CallbackOptions, Observation

from nvcf_autoscaler.controller.queues import RESOLUTION, QueueAge
from nvcf_autoscaler.controller.recorder import direction
from nvcf_autoscaler.telemetry.snapshot import (
    BUSY,
    DRAINING,
    IDLE,
    STARTING,
    Snapshots,
    VersionSnapshot,
    gpu_seconds,
)
from nvcf_otel.cardinality import OTHER, Bounded
from nvcf_proto.models import Instance, InstanceState

# --- ages


def test_a_queue_that_was_empty_knows_how_long_its_first_request_waits() -> None:
    age = QueueAge()
    assert age.sample(0.0, delivered=5, pending=0) == 0.0
    assert age.sample(1.0, delivered=5, pending=1) == 0.0
    assert age.sample(4.0, delivered=5, pending=3) == 3.0
    # The first is with a worker: what waits came between the first and the second sample.
    assert age.sample(6.0, delivered=6, pending=2) == 2.0
    assert age.sample(9.0, delivered=8, pending=0) == 0.0
    assert age.sample(20.0, delivered=8, pending=1) == 0.0


def test_the_age_of_requests_before_the_first_sample_is_queried() -> None:
    age = QueueAge()
    assert age.sample(100.0, delivered=2, pending=4) is None
    assert age.began(100.0, 70.0) == 30.0
    assert age.sample(101.0, delivered=5, pending=2) == 31.0
    assert age.sample(102.0, delivered=6, pending=1) == 1.0


def test_cancelled_requests_make_no_other_one_older() -> None:
    age = QueueAge()
    age.sample(0.0, 0, 0)
    age.sample(1.0, 0, 1)
    age.sample(5.0, 0, 10)
    assert age.sample(6.0, 0, 2) == 5.0
    assert age.sample(7.0, 1, 1) == 2.0
    assert age.sample(8.0, 2, 0) == 0.0
    assert age.sample(9.0, 2, 1) == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_ages_are_those_of_a_queue_simulated(steps: list[tuple[int, int]]) -> None:
    age = QueueAge()
    age.sample(0.0, 0, 0)
    waiting: list[float] = []
    delivered = 0
    for now, (come, go) in enumerate(steps, 1):
        waiting += [float(now)] * come
        taken = min(go, len(waiting))
        delivered, waiting = delivered + taken, waiting[taken:]
        expected = now - waiting[0] if waiting else 0.0
        assert age.sample(float(now), delivered, len(waiting)) == expected


def test_a_long_backlog_takes_little_memory() -> None:
    age = QueueAge()
    age.sample(0.0, 0, 0)
    for now in range(1, 10_000):
        assert age.sample(float(now), 0, now) == now - 1
    assert len(age._grown) < 4 * RESOLUTION
    ages = []
    for delivered in range(0, 9_999, 100):
        seconds = age.sample(10_000.0, delivered, 9_999 - delivered)
        true = 10_000.0 - (delivered + 1)
        assert seconds is not None
        assert true <= seconds <= true + 10_000 / RESOLUTION
        ages.append(seconds)
    assert all(one >= other for one, other in pairwise(ages))


# --- GPU time


def instance(state: InstanceState = InstanceState.RUNNING, gpu: str | None = "H100") -> Instance:
    return Instance(
        id="i",
        function_id="f",
        version_id="v",
        cluster_id="c",
        state=state,
        updated_at=0.0,
        created_at=0.0,
        gpu=gpu,
    )


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (instance(InstanceState.PENDING), {("H100", "c", STARTING): 20.0}),
        (instance(InstanceState.STARTING), {("H100", "c", STARTING): 20.0}),
        (instance(), {("H100", "c", BUSY): 5.0, ("H100", "c", IDLE): 15.0}),
        (instance().replace(draining_since=1.0), {("H100", "c", DRAINING): 20.0}),
        (instance(InstanceState.TERMINATING), {("H100", "c", DRAINING): 20.0}),
        (instance(InstanceState.FAILED), {}),
        (instance(InstanceState.COMPLETED), {}),
        (instance(gpu=None), {("CPU", "c", BUSY): 5.0, ("CPU", "c", IDLE): 15.0}),
    ],
)
def test_gpu_time_of_an_instance(each: Instance, expected: dict[tuple[str, str, str], float]) -> None:
    assert gpu_seconds(10.0, [each.replace(devices=2)], busy=0.25) == expected


@given(st.lists(st.sampled_from(InstanceState), max_size=20), st.floats(0, 1), st.floats(0, 100))
def test_no_time_is_lost_or_made(states: list[InstanceState], busy: float, seconds: float) -> None:
    over = (InstanceState.COMPLETED, InstanceState.FAILED)
    found = gpu_seconds(seconds, [instance(state) for state in states], busy)
    assert sum(found.values()) == pytest.approx(seconds * sum(state not in over for state in states))


# --- decisions


@pytest.mark.parametrize(
    ("before", "up", "now", "expected"),
    [
        (None, 0, (("a", 1),), "up"),
        (None, 2, (("a", 1),), "down"),
        (None, 1, (("a", 1),), None),
        ((("a", 1),), 1, (("a", 3),), "up"),
        ((("a", 3),), 3, (("a", 0),), "down"),
        ((("a", 2), ("b", 0)), 2, (("a", 1), ("b", 1)), "spill"),
        ((("a", 2),), 2, (("a", 2),), None),
    ],
)
def test_direction(
    before: tuple[tuple[str, int], ...] | None,
    up: int,
    now: tuple[tuple[str, int], ...],
    expected: str | None,
) -> None:
    assert direction(before, up, now) == expected


# --- snapshots


def collected(observe: Callable[[CallbackOptions], Iterable[Observation]]) -> list[Observation]:
    return list(observe(CallbackOptions()))


def seen(number: int, **changes: object) -> VersionSnapshot:
    base = VersionSnapshot(
        function_id=f"f{number}",
        version_id=f"v{number}",
        name=f"function-{number}",
        queued=1,
        in_flight=2,
        slots=4,
        instances={("RUNNING", "c", "H100"): 1},
        desired=((f"{number}-H100", 1),),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def every_gauge(snapshots: Snapshots) -> dict[str, list[Observation]]:
    return {
        "depth": collected(snapshots._sums(lambda each: each.queued)),
        "age": collected(snapshots._oldest),
        "instances": collected(snapshots._instances),
        "desired": collected(snapshots._desired),
        "utilisation": collected(snapshots._utilisation),
        "gpu": collected(snapshots._gpu_seconds),
        "info": collected(snapshots._info),
    }


def test_ten_thousand_functions_are_a_thousand_series_and_nothing_is_missing_in_the_sums() -> None:
    snapshots = Snapshots(lambda: True)
    for number in range(10_000):
        snapshots.update(seen(number, queue_age=float(number)))
        snapshots.add_gpu_time(f"v{number}", {("H100", "c", IDLE): 1.0})
    found = every_gauge(snapshots)
    assert {name: len(points) for name, points in found.items()} == {
        "depth": 1001,
        "age": 1001,
        "instances": 1001,
        "desired": 1001,
        "utilisation": 1001,
        "gpu": 1001,
        "info": 1000,
    }
    for name in ("depth", "instances", "desired", "gpu"):
        assert sum(point.value for point in found[name]) == 10_000, name
    assert max(point.value for point in found["age"]) == 9_999
    assert {point.value for point in found["utilisation"]} == {0.5}


def test_idle_versions_do_not_take_the_places_of_those_in_use() -> None:
    snapshots = Snapshots(lambda: True, Bounded(limit=2))
    for number in range(100):
        snapshots.update(seen(number, queued=0, in_flight=0, slots=0, instances={}, desired=()))
    assert every_gauge(snapshots)["depth"] == []
    snapshots.update(seen(99))
    (point,) = every_gauge(snapshots)["depth"]
    assert point.attributes == {"nvcf.function.id": "f99", "nvcf.function.version.id": "v99"}
    for number in range(90, 100):
        snapshots.update(seen(number))
    found = {
        point.attributes and point.attributes["nvcf.function.version.id"]
        for point in every_gauge(snapshots)["depth"]
    }
    assert found == {"v99", "v90", OTHER}


def test_a_version_that_becomes_idle_reports_zero() -> None:
    snapshots = Snapshots(lambda: True)
    snapshots.update(seen(1))
    snapshots.update(seen(1, queued=0, in_flight=0, slots=0, instances={}, desired=()))
    (point,) = every_gauge(snapshots)["depth"]
    assert point.value == 0
    snapshots.forget("v1")
    assert every_gauge(snapshots)["depth"] == []


def test_a_replica_that_does_not_lead_reports_no_versions() -> None:
    leads = True
    snapshots = Snapshots(lambda: leads)
    snapshots.update(seen(1))
    leads = False
    assert [name for name, points in every_gauge(snapshots).items() if points] == []
