"""Capacity: what instances take, and that nothing is given twice."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.errors import AgentError, NoCapacity, Refused, Unsupported
from nvcf_agent.state.inventory import Limits, Share
from nvcf_agent.state.machine_inventory import MachineInventory, parse_gpus, parse_instance_type
from nvcf_proto.icms.reports import GpuUsage
from tests.unit.agent.orders import order

MIXED = MachineInventory(2, (("L40S", 2), ("H100", 4)))


def test_cpu_instances_take_slots_and_gpu_instances_devices() -> None:
    assert MIXED.place(order(), []) == [Share(slots=1)]
    assert MIXED.place(order(gpu="L40S"), []) == [Share(devices=(0,))]
    assert MIXED.place(order(gpu="H100", requested_gpu_count=2), []) == [Share(devices=(2, 3))]
    taken = [Share(devices=(2,)), Share(devices=(4,))]
    assert MIXED.place(order(gpu="H100", requested_gpu_count=2), taken) == [Share(devices=(3, 5))]
    assert MIXED.place(order(gpu="L40S"), taken)[0].visible_devices == "0"
    assert Share(slots=1).visible_devices is None


@pytest.mark.parametrize(
    ("changes", "taken", "error", "words"),
    [
        ({}, [Share(slots=1)] * 2, NoCapacity, "1 CPU slots wanted, 0 of 2 free"),
        ({"gpu": "L40S", "requested_gpu_count": 3}, [], Unsupported, "3 L40S wanted, this cluster has 2"),
        ({"gpu": "L40S"}, [Share(devices=(0, 1))], NoCapacity, "0 of 2 free"),
        ({"gpu": "B200"}, [], Unsupported, r"no GPU B200 \(it has: CPU, L40S, H100\)"),
        ({"instance_type_name": "huge"}, [], Unsupported, "no instance type huge of CPU, only process"),
    ],
)
def test_refusals_name_what_is_missing(
    changes: dict[str, Any], taken: list[Share], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        MIXED.place(order(**changes), taken)


def test_usage_reports_what_is_free_and_leaves_out_what_is_not_there() -> None:
    assert MIXED.usage([Share(slots=1), Share(devices=(0,)), Share(devices=(2, 5))]) == {
        "CPU": GpuUsage(2, 1, 1),
        "L40S": GpuUsage(2, 1, 1),
        "H100": GpuUsage(4, 2, 2),
    }
    assert MachineInventory(0, (("A", 1),)).usage([]) == {"A": GpuUsage(1, 0, 1)}


def test_each_gpu_has_nvidias_types_beside_the_clusters_own() -> None:
    listed = {gpu.name: gpu for gpu in MIXED.registered()}
    assert [each.name for each in listed["CPU"].instance_types] == ["process"]
    types = {each.name: each for each in listed["H100"].instance_types}
    assert list(types) == ["process", "NCP.GPU.H100_1x", "NCP.GPU.H100_2x", "NCP.GPU.H100_4x"]
    two = types["NCP.GPU.H100_2x"]
    assert (two.value, two.gpu_count, two.max_instances, two.node_type) == ("NCP.GPU.H100", 2, 2, "SINGLE")
    assert (types["process"].gpu_count, types["process"].default) == (0, True)


def test_the_type_decides_how_many_gpus_and_its_gpu_must_be_that_of_the_order() -> None:
    two = order(gpu="H100", instance_type_name="NCP.GPU.H100_2x", requested_gpu_count=4)
    assert MIXED.place(two, []) == [Share(devices=(2, 3))]
    assert MIXED.place(two, [], 2) == [Share(devices=(2, 3)), Share(devices=(4, 5))]
    with pytest.raises(Unsupported, match=r"no instance type NCP\.GPU\.H100_2x of L40S"):
        MIXED.place(order(gpu="L40S", instance_type_name="NCP.GPU.H100_2x"), [])
    old = order(gpu="H100", instance_type_name="", instance_type="NCP.GPU.H100_1x")
    assert MIXED.place(old, []) == [Share(devices=(2,))]


@given(
    st.lists(
        st.tuples(st.sampled_from(["CPU", "L40S", "H100", "B200"]), st.integers(0, 5), st.booleans()),
        max_size=30,
    )
)
def test_no_order_of_comings_and_goings_gives_anything_twice(steps: list[tuple[str, int, bool]]) -> None:
    held: list[Share] = []
    for gpu, count, leaves in steps:
        if leaves and held:
            held.pop(count % len(held))
            continue
        try:
            held.extend(MIXED.place(order(gpu=gpu, requested_gpu_count=count), held))
        except Refused:
            usage = MIXED.usage(held)
            assert gpu not in usage or usage[gpu].available < max(1, count)
        devices = [device for share in held for device in share.devices]
        assert len(devices) == len(set(devices))
        assert sum(share.slots for share in held) <= MIXED.cpu_slots
        assert all(0 <= each.available <= each.capacity for each in MIXED.usage(held).values())


def test_flags() -> None:
    assert parse_gpus("L40S=4") == ("L40S", 4)
    for wrong in ("L40S", "=4", "CPU=4", "L40S=0", "L40S=x", "a b=1"):
        with pytest.raises(AgentError, match="--gpu"):
            parse_gpus(wrong)
    assert parse_instance_type("small,memory=512M,cpus=0.5") == ("small", Limits(512 * 2**20, 0.5))
    assert parse_instance_type("big,memory=2GiB") == ("big", Limits(2 * 2**30, None))
    assert parse_instance_type("any") == ("any", Limits())
    for wrong in ("", "a,disk=1", "a,memory=much", "a,memory=0", "a,cpus=0", "a,cpus=-1", "a,memory"):
        with pytest.raises(AgentError):
            parse_instance_type(wrong)


def test_all_types_say_what_machine_it_is() -> None:
    inventory = MachineInventory(1, (("H100", 2),), cpu_arch="amd64", os="linux")
    types = [kind for gpu in inventory.registered() for kind in gpu.instance_types]
    assert {(each.cpu_arch, each.os) for each in types} == {("amd64", "linux")}
