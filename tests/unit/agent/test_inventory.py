"""Capacity: what instances take, and that nothing is given twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.errors import AgentError, NoCapacity, Refused, Unsupported
from nvcf_agent.state.inventory import Inventory, Limits, Share, parse_gpus, parse_instance_type
from nvcf_proto.compute import GpuPool
from tests.unit.agent.orders import order

MIXED = Inventory(2, (("L40S", 2), ("H100", 4)))


def test_cpu_instances_take_slots_and_gpu_instances_devices() -> None:
    assert MIXED.place(order(), []) == Share(slots=1)
    assert MIXED.place(order(gpu="L40S"), []) == Share(devices=(0,))
    assert MIXED.place(order(gpu="H100", gpus_per_instance=2), []) == Share(devices=(2, 3))
    taken = [Share(devices=(2,)), Share(devices=(4,))]
    assert MIXED.place(order(gpu="H100", gpus_per_instance=2), taken) == Share(devices=(3, 5))
    assert MIXED.place(order(gpu="L40S"), taken).visible_devices == "0"
    assert Share(slots=1).visible_devices is None


@pytest.mark.parametrize(
    ("changes", "taken", "error", "words"),
    [
        ({}, [Share(slots=1)] * 2, NoCapacity, "all 2 CPU slots"),
        ({"gpu": "L40S", "gpus_per_instance": 3}, [], NoCapacity, "3 L40S wanted, 2 of 2 free"),
        ({"gpu": "L40S"}, [Share(devices=(0, 1))], NoCapacity, "0 of 2 free"),
        ({"gpu": "B200"}, [], Unsupported, r"no GPU B200 \(it has: L40S, H100\)"),
        ({"instance_type": "huge"}, [], Unsupported, "no instance type huge, only process"),
    ],
)
def test_refusals_name_what_is_missing(
    changes: dict[str, object], taken: list[Share], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        MIXED.place(order(**changes), taken)


def test_pools_report_what_is_free_and_leave_out_what_is_not_there() -> None:
    assert MIXED.pools([Share(slots=1), Share(devices=(0,)), Share(devices=(2, 5))]) == (
        GpuPool("CPU", "process", 2, 1),
        GpuPool("L40S", "process", 2, 1),
        GpuPool("H100", "process", 4, 2),
    )
    types = (("small", Limits(memory=1)), ("big", Limits()))
    assert Inventory(0, (("A", 1),), types).pools([]) == (
        GpuPool("A", "small", 1, 1),
        GpuPool("A", "big", 1, 1),
    )


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
            held.append(MIXED.place(order(gpu=gpu, gpus_per_instance=count), held))
        except Refused:
            free = {pool.gpu: pool.instances_free for pool in MIXED.pools(held)}
            assert free.get(gpu, 0) < max(1, count)
        devices = [device for share in held for device in share.devices]
        assert len(devices) == len(set(devices))
        assert sum(share.slots for share in held) <= MIXED.cpu_slots
        assert all(0 <= pool.instances_free <= pool.instances_total for pool in MIXED.pools(held))


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
