"""What a cluster's registration and heartbeats say of its nodes, and whose cause an instance keeps."""

from __future__ import annotations

import pytest

from nvcf_gateway.clusters.cluster_records import pools_of
from nvcf_gateway.clusters.instance_reports import reported
from nvcf_proto.icms.causes import CONSEQUENCES, Cause
from nvcf_proto.icms.reports import Gpu, GpuUsage, InstanceType, StatusReport
from nvcf_proto.icms.reports import InstanceState as Reported
from nvcf_proto.models import Instance, InstanceState

ID = "6f1d0a52-0d6c-4a0e-9c3b-2f7f8f2b1c02"


def types(*sizes: int, largest: int) -> tuple[InstanceType, ...]:
    found = [InstanceType(name=f"NCP.GPU.H100_{size}x", gpu_count=size) for size in sizes]
    two = InstanceType(name="NCP.GPU.H100_8x.x2", gpu_count=2 * largest, node_type="MULTI")
    return (*found, two)


@pytest.mark.parametrize(
    ("capacity", "one_machine", "node", "nodes"),
    [(16, False, 8, 2), (12, False, 8, 2), (8, False, 8, 1), (12, True, 12, 1)],
)
def test_pools_say_how_many_gpus_a_node_has(capacity: int, one_machine: bool, node: int, nodes: int) -> None:
    gpu = Gpu(name="H100", instance_types=types(1, 2, 4, 8, largest=8))
    usage = {"H100": GpuUsage(capacity, 0, capacity)}
    pools = pools_of((gpu,), usage, one_machine=one_machine)
    assert {(each.node_gpus, each.nodes) for each in pools} == {(node, nodes)}


def test_pools_have_the_attributes_of_their_nodes() -> None:
    kinds = (
        InstanceType(name="a", cpu_arch="amd64", os="linux", driver_version="550", storage="125Gi"),
        InstanceType(name="b", system_memory="64Gi", gpu_memory="79Gi"),
    )
    assert [each.attributes for each in pools_of((Gpu(name="H100", instance_types=kinds),), {})] == [
        {"cpuArch": "amd64", "os": "linux", "driverVersion": "550", "storage": "125Gi"},
        {"systemMemory": "64Gi", "gpuMemory": "79Gi"},
    ]


@pytest.mark.parametrize("cause", sorted(CONSEQUENCES))
def test_an_instance_that_was_given_up_keeps_the_reason_when_its_agent_obeys(cause: Cause) -> None:
    reason = "lost: nothing was heard of cluster one"
    record = Instance(
        id="0-sr-1",
        function_id=ID,
        version_id=ID,
        cluster_id="one",
        state=InstanceState.FAILED,
        updated_at=1.0,
        created_at=0.0,
        reason=reason,
        category="lost",
        request_id="1",
        acknowledged_at=0.5,
        reported_at=0.6,
    )
    report = StatusReport(
        status="instance-terminated-by-service", instance_state=Reported.TERMINATED, termination_cause=cause
    )
    after = reported(record, "one", "0-sr-1", report, 2.0).record or record
    assert (after.state, after.category, after.reason) == (InstanceState.FAILED, "lost", reason)
