"""Room for new instances: never more than any placement could hold, and nothing is given away twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, event, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from nvcf_autoscaler.placement.nodes import guaranteed_room
from nvcf_autoscaler.placement.place import Capacity, Cluster
from nvcf_autoscaler.placement.timings import timings_of
from nvcf_autoscaler.placement.usage import usage_of
from nvcf_autoscaler.placement.view import clusters_for
from nvcf_proto.models import DeploymentSpecification, Instance, InstanceState
from tests.unit.autoscaler.records import NOW, cluster, cluster_lists, instance, instance_lists


def least_room(size: int, placed: Sequence[int], nodes: Sequence[int]) -> int | None:
    """Return the fewest instances that still fit, of all ways to put `placed` on nodes; None: no way."""
    if not placed:
        return sum(each // size for each in nodes)
    found = []
    for number, free in enumerate(nodes):
        if free >= placed[0]:
            left = sorted((*nodes[:number], free - placed[0], *nodes[number + 1 :]))
            found.append(least_room(size, placed[1:], left))
    return min((each for each in found if each is not None), default=None)


@given(st.integers(1, 8), st.lists(st.integers(1, 8), max_size=4), st.integers(0, 2), st.data())
@examples(max_examples=200)
def test_an_order_never_exceeds_what_any_placement_could_hold(
    size: int, placed: list[int], units: int, data: st.DataObject
) -> None:
    largest = data.draw(st.integers(max(size, *placed, 1), 8))
    nodes = [largest, *data.draw(st.lists(st.integers(0, largest) | st.just(largest), max_size=3))]
    least = least_room(size, [*placed, *[1] * units], nodes)
    assume(least is not None)
    room = guaranteed_room(size, placed, units, total=sum(nodes), node_gpus=largest, nodes=len(nodes))
    assert least is not None
    assert 0 <= room <= least
    event(f"as good as it gets: {room == least}")


@given(st.integers(0, 2), st.lists(st.integers(0, 3), max_size=5), st.integers(1, 3))
def test_on_equal_nodes_nothing_is_wasted_on_multiples_of_the_wanted_size(
    power: int, powers: list[int], count: int
) -> None:
    size = 2**power
    placed = [size * 2 ** min(each, 3 - power) for each in powers]
    least = least_room(size, placed, [8] * count)
    assume(least is not None)
    assert guaranteed_room(size, placed, 0, total=8 * count, node_gpus=8, nodes=count) == least


def test_eight_gpus_of_sixteen_with_five_in_use_are_not_enough_for_certain() -> None:
    """As NVIDIA's agent had it: 11 of 16 free, and an instance of 8 hung."""
    assert guaranteed_room(8, [5], 0, total=16, node_gpus=8, nodes=2) == 1
    assert guaranteed_room(8, [4, 1], 0, total=16, node_gpus=8, nodes=2) == 0
    assert guaranteed_room(8, [], 5, total=16, node_gpus=8, nodes=2) == 0
    assert guaranteed_room(8, [], 0, total=16, node_gpus=8, nodes=2) == 2
    # Two whole nodes for one instance; one node that is one machine.
    assert guaranteed_room(16, [], 0, total=32, node_gpus=8, nodes=4) == 2
    assert guaranteed_room(16, [1], 0, total=32, node_gpus=8, nodes=4) == 1
    assert guaranteed_room(1, [2], 1, total=8) == 5


@pytest.mark.parametrize(("total", "node", "nodes"), [(2**31 - 1, 2, 2**30), (2**30 + 1, 2**30, 2)])
def test_billions_of_gpus_in_a_heartbeat_cost_no_memory(total: int, node: int, nodes: int) -> None:
    """Any agent may say so, and the autoscaler works for all clusters."""
    assert guaranteed_room(2, [], total, total=total, node_gpus=node, nodes=nodes) == 0


SPEC = DeploymentSpecification(gpu="A")
SLOW = timings_of(300.0, 30.0)


def free(clusters: Sequence[Cluster], *instances: Instance, spec: DeploymentSpecification = SPEC) -> int:
    seen = clusters_for(spec, clusters, usage_of(NOW, instances, clusters))
    return sum(each.free("A", "process") for each in seen)


@given(instance_lists(), cluster_lists, st.integers(0, 3))
def test_room_never_exceeds_what_is_there_less_what_the_records_hold(
    instances: list[Instance], clusters: list[Cluster], per_instance: int
) -> None:
    spec = DeploymentSpecification(gpu="A", gpus_per_instance=per_instance)
    living = [each for each in instances if each.state not in (InstanceState.FAILED, InstanceState.COMPLETED)]
    seen = clusters_for(spec, clusters, usage_of(NOW, instances, clusters))
    for before, after in zip(clusters, seen, strict=True):
        held = sum(each.devices for each in living if each.cluster_id == before.id)
        total = before.capacity[0].total
        assert after.free("A", "process") * max(1, per_instance) <= max(0, total - held)


def test_an_order_takes_room_at_once_and_a_heartbeat_that_counts_it_takes_it_once() -> None:
    ordered = instance(1, state=InstanceState.PENDING, devices=4)
    assert free([cluster(free=8)], ordered) == 4
    taken_up = ordered.replace(acknowledged_at=NOW - 5)
    assert free([cluster(free=8, heard_ago=6)], taken_up) == 4
    assert free([cluster(free=4, total=8, heard_ago=1)], taken_up) == 4
    # The heartbeat is older than the acknowledgement: what it counts belongs to others.
    assert free([cluster(free=4, total=8, heard_ago=6)], taken_up) == 0


def ended(**changes: Any) -> Instance:
    return instance(
        1,
        state=InstanceState.COMPLETED,
        acknowledged_at=NOW - 900,
        reported_at=NOW - 5,
        updated_at=NOW - 5,
        **changes,
    )


def test_gpus_of_an_ended_instance_are_free_when_its_agent_has_released_them() -> None:
    before = cluster(free=3, total=4, heard_ago=200, timings=SLOW)
    assert free([before], ended()) == 3
    assert free([before], ended(released_at=NOW)) == 4
    # Or when a later heartbeat does not count them any more, or after a time limit.
    assert free([cluster(free=3, total=4, heard_ago=1, timings=SLOW)], ended()) == 3
    assert free([cluster(free=4, total=4, heard_ago=1, timings=SLOW)], ended()) == 4
    long_ago = ended().replace(updated_at=NOW - SLOW.release - 1)
    assert free([cluster(free=4, heard_ago=SLOW.release + 2, timings=SLOW)], long_ago) == 4


def test_an_order_that_was_given_up_before_anybody_took_it_up_holds_nothing() -> None:
    assert free([cluster()], instance(1, state=InstanceState.FAILED, updated_at=NOW)) == 4


@pytest.mark.parametrize(("placed", "room"), [([4, 1], 0), ([2, 2, 1], 0), ([4], 1), ([], 2)])
def test_placement_is_per_node(placed: list[int], room: int) -> None:
    pool = Capacity("A", "process", 16 - sum(placed), 16, node_gpus=8, nodes=2)
    there = [Cluster("one", "local", NOW, (pool,), heartbeat_at=NOW)]
    instances = [
        instance(number, devices=size, acknowledged_at=NOW - 9) for number, size in enumerate(placed)
    ]
    whole_node = DeploymentSpecification(gpu="A", gpus_per_instance=8)
    assert free(there, *instances, spec=whole_node) == room
