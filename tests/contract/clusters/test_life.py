"""The life of an instance between ICMS and an agent as NVIDIA's (docs/reference/protocol.md, section 6)."""

from __future__ import annotations

import pytest

from nvcf_proto.models import InstanceState
from tests.support.platform.icms import ComputePlane
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

STARTING, RUNNING = InstanceState.STARTING, InstanceState.RUNNING
COMPLETED, FAILED = InstanceState.COMPLETED, InstanceState.FAILED


async def test_an_instance_from_order_to_end(plane: ComputePlane) -> None:
    """6.5, 6.6: acknowledged, starting, running, terminated; the record follows each report."""
    agent = await plane.cluster()
    assert await agent.register() == (
        200,
        {
            "clusterId": agent.cluster_id,
            "clusterGroupId": agent.cluster_id,
            "credentials": {
                "creationQueue": {},
                "clusterCreationQueue": {},
                "clusterCreationQueueForTasks": {},
                "terminationQueue": None,
            },
            "clusterName": plane.registered.get(agent.cluster_id).name,  # type: ignore[union-attr]
            "region": "local",
        },
    )
    assert await agent.heartbeat() == (200, {"action": "ACCEPTED", "maintenance": "None"})
    version = await plane.version()
    request = await plane.order(version, agent.cluster_id)
    created = await agent.creation()
    assert created.message.subject == f"Create.NVCA.Function.{agent.cluster_id}.H100.NCP|GPU|H100"
    assert created.request_id == request
    assert await agent.acknowledge(request) == (200, {})
    await agent.confirm(created.message)
    await eventually(lambda: plane.record(request).acknowledged_at is not None, "acknowledged")  # type: ignore[union-attr]
    assert await agent.report(request, created.instance_id, "starting") == (200, {})
    await plane.state(request, STARTING)
    assert await agent.report(request, created.instance_id, "running") == (200, {})
    assert (await plane.state(request, RUNNING)).ready_at is not None
    assert await agent.call("GET", f"/v1/si/clusters/{agent.cluster_id}/instances") == (
        200,
        {
            "instances": [
                {"instanceId": created.instance_id, "requestId": request, "instanceState": "running"}
            ]
        },
    )
    await plane.terminate(request)
    ended = await agent.termination()
    assert ended["instanceIds"] == [created.instance_id]
    assert await agent.ended_by_user(request, created.instance_id) == (200, {})
    record = await plane.state(request, COMPLETED)
    assert (record.released_at, record.reason, record.category) == (None, "scaled down", None)
    assert await agent.ended(request, created.instance_id, "instance-not-found") == (200, {})
    await eventually(lambda: plane.record(request).released_at is not None, "released")  # type: ignore[union-attr]
    assert plane.record(request).state is COMPLETED  # type: ignore[union-attr]
    assert agent.errors == []
