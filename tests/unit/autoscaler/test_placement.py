"""Placement: never beyond capacity, never to silent clusters, preferred order, spread, always the same
answer.
"""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nvcf_autoscaler.placement.place import (
    Capacity,
    Cluster,
    Placed,
    Requirement,
    endings,
    place,
    room,
)

NOW = 1000.0
H100 = Requirement("H100", "one")


def cluster(name: str, free: int, *, region: str = "eu", age: float = 0.0, healthy: bool = True) -> Cluster:
    return Cluster(name, region, NOW - age, (Capacity("H100", "one", free),), healthy=healthy)


@st.composite
def fleets(draw: st.DrawFn) -> list[Cluster]:
    return [
        Cluster(
            f"c{index}",
            draw(st.sampled_from(["eu", "us"])),
            NOW - draw(st.floats(0, 60)),
            (
                Capacity("H100", "one", draw(st.integers(-2, 9))),
                Capacity("L40", "one", draw(st.integers(0, 9))),
            ),
            draw(st.sampled_from([None, "blue"])),
            frozenset(draw(st.sets(st.sampled_from(["nvlink", "fips"])))),
            draw(st.booleans()),
        )
        for index in range(draw(st.integers(0, 6)))
    ]


@st.composite
def requirements(draw: st.DrawFn) -> Requirement:
    return Requirement(
        "H100",
        "one",
        tuple(draw(st.permutations(["c0", "c1", "c2"]))) if draw(st.booleans()) else (),
        tuple(draw(st.permutations(["eu", "us"]))) if draw(st.booleans()) else (),
        ("blue",) if draw(st.booleans()) else (),
        frozenset(draw(st.sets(st.sampled_from(["nvlink"])))),
        draw(st.one_of(st.none(), st.integers(0, 5))),
    )


@given(
    fleets(),
    requirements(),
    st.integers(0, 40),
    st.dictionaries(st.sampled_from(["c0", "c1"]), st.integers(0, 4)),
)
@examples(max_examples=200)
def test_capacity_silence_and_requirements_are_kept(
    fleet: list[Cluster], wanted: Requirement, count: int, pending: dict[str, int]
) -> None:
    placed = place(NOW, count, wanted, fleet, pending=pending)
    by_id = {one.id: one for one in fleet}

    assert sum(number for _, number in placed.assigned) + placed.unplaced == count
    for name, number in placed.assigned:
        target = by_id[name]
        assert 0 < number <= target.free("H100", "one") - pending.get(name, 0)
        assert NOW - target.heard_at <= target.timings.silent_after
        assert target.healthy
        assert wanted.attributes <= target.attributes
        assert not wanted.clusters or name in wanted.clusters
        if wanted.max_per_cluster is not None:
            assert number <= wanted.max_per_cluster
    # What could be placed is placed, and `room` is how much that is.
    assert placed.unplaced == max(0, count - room(NOW, wanted, fleet, pending=pending))


@given(fleets(), requirements(), st.integers(0, 20), st.integers(0, 100))
def test_the_order_in_which_clusters_come_does_not_matter(
    fleet: list[Cluster], wanted: Requirement, count: int, seed: int
) -> None:
    shuffled = list(fleet)
    random.Random(seed).shuffle(shuffled)

    assert place(NOW, count, wanted, fleet) == place(NOW, count, wanted, shuffled)


def test_preferred_clusters_are_filled_first() -> None:
    wanted = Requirement("H100", "one", clusters=("b", "a"))

    placed = place(NOW, 5, wanted, [cluster("a", 9), cluster("b", 3)])

    assert placed.assigned == (("b", 3), ("a", 2))


def test_equally_preferred_clusters_share_and_what_runs_already_counts() -> None:
    fleet = [cluster("a", 9), cluster("b", 9)]

    assert place(NOW, 4, H100, fleet).assigned == (("a", 2), ("b", 2))
    assert place(NOW, 3, H100, fleet, existing={"a": 2}).assigned == (("b", 3),) or place(
        NOW, 3, H100, fleet, existing={"a": 2}
    ).assigned == (("a", 1), ("b", 2))


def test_the_reason_names_what_is_wrong_with_each_cluster() -> None:
    fleet = [cluster("a", 1), cluster("b", 5, age=40.0), cluster("c", 5, healthy=False), cluster("d", 0)]

    reason = place(NOW, 2, H100, fleet).reason

    assert reason.startswith("1 in a, no place for 1")
    for text in ("a: full", "b: silent for 40 s", "c: unhealthy", "d: no free one with H100"):
        assert text in reason


def test_the_reason_says_once_what_several_clusters_lack() -> None:
    fleet = [cluster("b", 5), cluster("a", 5)]

    assert place(NOW, 1, Requirement("L40S", "one"), fleet).reason == (
        "no place for 1 (a, b: no GPU L40S, only H100)"
    )
    assert place(NOW, 1, Requirement("H100", "two"), fleet).reason == (
        "no place for 1 (a, b: no two with H100, only one)"
    )


def test_starting_ones_end_first_then_the_idle_longest_then_the_least_busy() -> None:
    instances = [
        Placed("busy", "a", 0.0, ready=True, in_flight=3),
        Placed("light", "a", 0.0, ready=True, in_flight=1),
        Placed("idle", "a", 0.0, ready=True, idle_since=50.0),
        Placed("long", "a", 0.0, ready=True, idle_since=10.0),
        Placed("old", "a", 5.0, ready=False),
        Placed("new", "a", 9.0, ready=False),
    ]

    assert [one.id for one in endings(instances, 6)] == ["new", "old", "long", "idle", "light", "busy"]
    assert endings(instances, -1) == ()
