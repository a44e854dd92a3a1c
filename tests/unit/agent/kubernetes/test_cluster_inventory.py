"""The inventory of nodes: what fits where, what is free, and that nothing is given out twice."""

from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from nvcf_agent.errors import NoCapacity, Unsupported
from nvcf_agent.kubernetes.nodes.inventory import ClusterInventory
from nvcf_agent.kubernetes.nodes.node import read_node
from nvcf_agent.kubernetes.nodes.static import parse_static
from nvcf_agent.state.inventory import NO_LIMITS, Limits, Share
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.icms.reports import GpuUsage
from tests.unit.agent.kubernetes.nodes import node
from tests.unit.agent.orders import order


def inventory(*sizes: int, **changes: Any) -> ClusterInventory:
    read = [read_node(node(f"n{number}", gpus=size), "NCP") for number, size in enumerate(sizes)]
    return ClusterInventory(tuple(each for each in read if each is not None), **changes)


def wanted(size: str, gpu: str = "H100") -> CreationMessage:
    return order(gpu=gpu, instance_type_name=f"NCP.GPU.{gpu}_{size}", instance_type_value=f"NCP.GPU.{gpu}")


def test_an_order_needs_room_on_a_single_node() -> None:
    here = inventory(8, 8)
    assert here.place(wanted("8x"), [], 2) == [Share(gpu="H100", gpus=8)] * 2
    taken = [Share(gpu="H100", gpus=1, node="n0"), Share(gpu="H100", gpus=1, node="n1")]
    with pytest.raises(NoCapacity, match=r"no node has 8 H100 free \(at most 7\)"):
        here.place(wanted("8x"), taken)
    assert here.usage(taken) == {"H100": GpuUsage(16, 2, 14)}
    # What is not scheduled yet is expected where it leaves the most room.
    assert here.place(wanted("8x"), [Share(gpu="H100", gpus=1)] * 8)
    with pytest.raises(NoCapacity):
        here.place(wanted("8x"), [Share(gpu="H100", gpus=1)] * 9)


def test_several_whole_nodes() -> None:
    here = inventory(8, 8, 8)
    (share,) = here.place(wanted("8x.x2"), [])
    assert share == Share(gpu="H100", gpus=8, nodes=2)
    assert here.usage([share]) == {"H100": GpuUsage(24, 16, 8)}
    with pytest.raises(NoCapacity, match="no 2 nodes have 8 H100 free"):
        here.place(wanted("8x.x2"), [share])


def test_unknown_types_are_refused_and_those_of_lost_nodes_wait() -> None:
    with pytest.raises(Unsupported, match=r"no instance type NCP\.GPU\.A100_1x, only: NCP\.GPU\.H100_1x"):
        inventory(1).place(wanted("1x", "A100"), [])
    with pytest.raises(NoCapacity, match="no node with instance type"):
        inventory(known=frozenset(("NCP.GPU.H100_1x",))).place(wanted("1x"), [])


def test_instances_on_a_node_that_is_not_used_any_more_take_nothing_from_the_others() -> None:
    here = inventory(2)
    away = Share(gpu="H100", gpus=2, node="cordoned")
    assert here.place(wanted("2x"), [away])
    assert here.usage([away]) == {"H100": GpuUsage(2, 2, 2)}


def test_the_name_of_the_type_decides() -> None:
    message = order(gpu="A100", instance_type_name="NCP.GPU.H100_1x")
    assert inventory(1).place(message, []) == [Share(gpu="H100", gpus=1)]


def test_slots_without_a_gpu() -> None:
    here = ClusterInventory(cpu_slots=2, enforced=True)
    message = order(instance_type_name="NCP.CPU_1x")
    assert here.place(message, [Share(slots=1)]) == [Share(slots=1)]
    assert here.limits("NCP.CPU_1x") == NO_LIMITS
    assert here.usage([Share(slots=1)]) == {"CPU": GpuUsage(2, 1, 1)}
    assert [each.name for each in here.registered()] == ["CPU"]
    with pytest.raises(NoCapacity):
        here.place(message, [Share(slots=2)])
    with pytest.raises(Unsupported):
        here.place(message, [], 3)


def test_limits_are_the_types_shares_where_they_are_enforced() -> None:
    assert inventory(8).limits("NCP.GPU.H100_2x") == Limits()
    assert inventory(8, enforced=True).limits("NCP.GPU.H100_2x") == Limits(128 * 2**30, 16.0)


def test_what_is_written_down_has_machines_as_large_as_its_largest_type() -> None:
    text = """[{"name": "L40", "capacity": 6, "instanceTypes": [
      {"name": "X.L40_1x", "value": "X.L40", "gpuCount": 1},
      {"name": "X.L40_4x", "value": "X.L40", "gpuCount": 4}
    ]}]"""
    here = ClusterInventory(static=parse_static(text))
    large = order(gpu="L40", instance_type_name="X.L40_4x")
    (share,) = here.place(large, [])
    with pytest.raises(NoCapacity):
        here.place(large, [share])
    assert here.usage([Share(gpu="L40", gpus=4, node="real")]) == {"L40": GpuUsage(6, 4, 2)}


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=5),
    sequence=st.lists(st.tuples(st.sampled_from(("1x", "2x", "4x", "8x")), st.integers(0, 4)), max_size=20),
)
def test_whatever_is_accepted_fits_its_nodes(sizes: list[int], sequence: list[tuple[str, int]]) -> None:
    """A scheduler that puts each accepted instance on the fullest node that has room never gets stuck."""
    here = inventory(*sizes)
    free = {f"n{number}": size for number, size in enumerate(sizes)}
    held: list[Share] = []
    for size, ended in sequence:
        for share in held[:ended]:
            free[share.node] += share.gpus
        held = held[ended:]
        try:
            (share,) = here.place(wanted(size), held)
        except (NoCapacity, Unsupported) as error:
            event(type(error).__name__)
            assert not any(room >= int(size[:-1]) for room in free.values())
        else:
            event("placed")
            fitting = [name for name, room in free.items() if room >= share.gpus]
            target = min(fitting, key=lambda name: free[name])
            free[target] -= share.gpus
            held.append(Share(gpu=share.gpu, gpus=share.gpus, node=target))
        usage = here.usage(held)["H100"]
        assert usage == GpuUsage(sum(sizes), sum(each.gpus for each in held), sum(free.values()))


@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    shares=st.lists(
        st.builds(
            Share,
            gpu=st.just("H100"),
            gpus=st.integers(1, 8),
            nodes=st.integers(1, 3),
            node=st.sampled_from(("", "n0", "n1", "gone")),
        ),
        max_size=20,
    ),
)
def test_usage_never_leaves_its_bounds(sizes: list[int], shares: list[Share]) -> None:
    usage = inventory(*sizes).usage(shares)["H100"]
    assert 0 <= usage.available <= usage.capacity
    assert usage.capacity - usage.available <= usage.allocated
