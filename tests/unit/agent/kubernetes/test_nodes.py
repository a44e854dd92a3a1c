"""What nodes offer: GPUs by their labels, and the instance types that they make."""

from decimal import Decimal
from typing import Any

import pytest

from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.nodes.instance_types import instance_types
from nvcf_agent.kubernetes.nodes.node import GpuNode, read_node, usable
from nvcf_agent.kubernetes.nodes.quantity import in_bytes, in_processors, quantity
from nvcf_agent.kubernetes.nodes.static import parse_static
from nvcf_agent.state.gpu_names import gpu_name
from tests.unit.agent.kubernetes.nodes import node


def found(**changes: Any) -> GpuNode:
    read = read_node(node(**changes), "NCP")
    assert read is not None
    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8", 8),
        ("7500m", Decimal("7.5")),
        ("512Gi", 512 * 2**30),
        ("1e3", 1000),
        ("2k", 2000),
        ("x", 0),
        ("", 0),
    ],
)
def test_quantities(text: str, value: Decimal) -> None:
    assert quantity(text) == value


def test_quantities_for_people() -> None:
    sizes = (0, 512 * 2**30, 2048 * 2**20, 81559 * 2**20, 125 * 2**29)
    assert [in_bytes(each) for each in sizes] == ["0", "512Gi", "2Gi", "79Gi", "62Gi"]
    assert [in_processors(each) for each in (8000, 7500)] == ["8", "7500m"]


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "A100-MIG-1g-5gb"),
        ("NVIDIA-L40S-SHARED", "L40S"),
        ("A100-SXM4-40GB-MIG-2g.10gb-SHARED", "A100-MIG-2g-10gb"),
        ("NVIDIA-GeForce-RTX-4090", "RTX4090"),
        ("Quadro-RTX-8000", "RTX8000"),
    ],
)
def test_names_of_gpus(product: str, name: str) -> None:
    assert gpu_name(product) == name


def test_a_node_as_the_gpu_operator_labels_it() -> None:
    assert found() == GpuNode(
        name="node-1",
        gpu="H100",
        kind="NCP.GPU.H100",
        gpus=8,
        milli_cpus=64_000,
        memory=512 * 2**30,
        storage=1000 * 2**30,
        gpu_memory=81559 * 2**20,
        description="NVIDIA-H100-80GB-HBM3 (hopper family) on a dgx-h100 machine",
        architecture="amd64",
        os="linux",
        driver="550.90.07",
        is_labelled=False,
    )


def test_labels_of_an_administrator_win() -> None:
    labels = {"nvca.nvcf.nvidia.io/gpu.product": "AD102GL", "nvca.nvcf.nvidia.io/instance-type": "MY.GPU"}
    read = found(labels=labels)
    assert (read.gpu, read.kind, read.is_labelled) == ("AD102GL", "MY.GPU", True)


def test_time_slices_and_passed_through_gpus_are_other_resources() -> None:
    shared = "NVIDIA-L40S-SHARED"
    assert found(product=shared, resource="nvidia.com/gpu.shared").resource == "nvidia.com/gpu.shared"
    assert found(product=shared).resource == "nvidia.com/gpu"
    labels = {"nvidia.com/gpu.workload.config": "vm-passthrough"}
    machine = node(resource="nvidia.com/pgpu", labels=labels)
    assert read_node(machine, "NCP") is None
    read = read_node(machine, "NCP", passthrough=True)
    assert read is not None
    assert read.resource == "nvidia.com/pgpu"


def test_what_is_not_ready_or_not_for_functions_is_not_usable() -> None:
    assert not found(ready=False).is_usable
    assert not found(cordoned=True).is_usable
    assert read_node({"metadata": {"name": "cpu"}}, "NCP") is None
    assert read_node(node(gpus=0), "NCP") is None
    label = "nvca.nvcf.nvidia.io/schedule"
    nodes = usable(
        [found(name="b"), found(name="a", labels={label: "true"}), found(name="c", labels={label: "no"})]
    )
    assert [(each.name, each.is_usable) for each in nodes] == [("a", True), ("b", False), ("c", False)]
    assert all(each.is_usable for each in usable([found(name="b"), found(name="a")]))


def test_types_of_two_nodes_are_those_of_nvidias_agent() -> None:
    kinds = instance_types([found(name="a"), found(name="b")])
    assert [(each.name, each.gpu_count, each.max_instances, each.node_type) for each in kinds] == [
        ("NCP.GPU.H100_1x", 1, 16, "SINGLE"),
        ("NCP.GPU.H100_2x", 2, 8, "SINGLE"),
        ("NCP.GPU.H100_4x", 4, 4, "SINGLE"),
        ("NCP.GPU.H100_8x", 8, 2, "SINGLE"),
        ("NCP.GPU.H100_8x.x2", 16, 1, "MULTI"),
    ]
    assert kinds[0].to_dict() == {
        "name": "NCP.GPU.H100_1x",
        "value": "NCP.GPU.H100",
        "description": "NVIDIA-H100-80GB-HBM3 (hopper family) on a dgx-h100 machine",
        "default": True,
        "cpu": "8",
        "cpuCores": 8,
        "systemMemory": "64Gi",
        "gpuMemory": "79Gi",
        "gpuCount": 1,
        "cpuArch": "amd64",
        "storage": "125Gi",
        "os": "linux",
        "driverVersion": "550.90.07",
        "nodeType": "SINGLE",
        "maxInstances": 16,
        "unschedulableCapacity": 0,
    }
    assert [each.default for each in kinds[1:]] == [False] * 4
    assert (kinds[-1].cpu, kinds[-1].system_memory) == ("128", "1Ti")


def test_numbers_of_gpus_that_are_no_powers_of_two_and_nodes_that_differ() -> None:
    kinds = instance_types([found(name="a", gpus=6), found(name="b", gpus=3), found(name="c", ready=False)])
    assert [(each.name, each.max_instances, each.unschedulable_capacity) for each in kinds] == [
        ("NCP.GPU.H100_1x", 9, 8),
        ("NCP.GPU.H100_2x", 4, 4),
        ("NCP.GPU.H100_3x", 3, 2),
        ("NCP.GPU.H100_4x", 1, 2),
        ("NCP.GPU.H100_6x", 1, 1),
    ]


def test_many_nodes_make_few_types() -> None:
    kinds = instance_types([found(name=f"n{number}") for number in range(200)])
    assert [each.name for each in kinds[-4:]] == [f"NCP.GPU.H100_8x.x{count}" for count in (16, 32, 64, 128)]
    assert len(kinds) < 20
    assert not any(
        ".x" in each.name for each in instance_types([found(name="a"), found(name="b")], multi_node=False)
    )


def test_gpus_that_are_written_down() -> None:
    text = """[
      {"name": "L40", "capacity": 4,
       "instanceTypes": [{"name": "X.L40_2x", "value": "X.L40", "gpuCount": 2}]},
      {"name": "T4",
       "instanceTypes": [{"name": "X.T4_1x", "value": "X.T4", "gpuCount": 1, "maxInstances": 3}]}
    ]"""
    assert [(each.name, each.capacity) for each in parse_static(text)] == [("L40", 4), ("T4", 3)]
    for wrong in ("{", "[1]", '[{"name": "L40"}]', '[{"instanceTypes": []}]'):
        with pytest.raises(AgentError):
            parse_static(wrong)
