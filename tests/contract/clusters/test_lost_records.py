"""Instances outlive the loss of their records (docs/reference/protocol.md, section 6.6)."""

from __future__ import annotations

import json

import pytest

from nvcf_proto.icms.request_ids import new_request_id
from nvcf_proto.ids import new_id
from nvcf_proto.models import Instance, InstanceState
from tests.support.peers.icms_agent import AgentPeer
from tests.support.peers.worker import connect_once
from tests.support.platform.gateways import Version
from tests.support.platform.icms import ComputePlane
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

SPECIFICATION = "0-H100-NCP.GPU.H100_1x-1x0"
RUNNING = InstanceState.RUNNING
DETAILS = {"restarts": 0}


async def serving(plane: ComputePlane, agent: AgentPeer, version: Version, request: str) -> str:
    """Take an instance to RUNNING and return its worker token."""
    await plane.order(version, agent.cluster_id, request_id=request)
    created = await agent.creation()
    assert (await agent.acknowledge(request))[0] == 200
    await agent.confirm(created.message)
    assert (await agent.report(request, created.instance_id, "running"))[0] == 200
    await plane.state(request, RUNNING)
    return created.environment["NVCF_WORKER_TOKEN"]


async def lose_instances(plane: ComputePlane) -> None:
    """Delete the bucket of all instances, as if its files were gone, and wait until it is there again."""
    reply = await plane.client.request("$JS.API.STREAM.DELETE.KV_nvcf_instances", b"", timeout=10)
    assert json.loads(reply.data)["success"]

    async def known_again() -> bool:
        reply = await plane.client.request("$JS.API.STREAM.INFO.KV_nvcf_instances", b"", timeout=10)
        listed = await plane.platform.call("GET", "/v2/nvcf/instances")
        return "error" not in json.loads(reply.data) and not listed["instances"]

    await eventually(known_again, "the bucket is there, and empty", 30)
    await eventually(lambda: not plane.instances.values(), "nobody knows an instance", 30)


async def test_a_lost_bucket_ends_no_instance(plane: ComputePlane) -> None:
    """6.6: NVIDIA's agent says neither version nor GPU; both follow from the request's id."""
    agent, version = await plane.cluster(), await plane.version()
    await agent.register()
    request = new_request_id(version.id, SPECIFICATION)
    token = await serving(plane, agent, version, request)
    before = plane.record(request)
    assert before is not None
    assert "reportAgain" not in (await agent.heartbeat(allocated=1))[1]
    await lose_instances(plane)
    # Its worker goes on meanwhile.
    await connect_once(plane.platform.gateway.grpc, token, before.id, version.function_id, version.id)
    assert (await agent.heartbeat(allocated=1))[1]["reportAgain"] is True
    assert (await agent.report(request, before.id, "running"))[0] == 200
    after = await plane.state(request, RUNNING)
    kept = (
        *("id", "function_id", "version_id", "cluster_id"),
        *("specification_id", "gpu", "request_id", "devices"),
    )
    for name in kept:
        assert getattr(after, name) == getattr(before, name), name
    assert after.acknowledged_at is not None
    assert "reportAgain" not in (await agent.heartbeat(allocated=1))[1]
    await connect_once(plane.platform.gateway.grpc, token, before.id, version.function_id, version.id)
    # And it ends as any other.
    await plane.terminate(request)
    ended = await agent.termination()
    assert ended["instanceIds"] == [before.id]
    assert (await agent.ended_by_user(request, before.id))[0] == 200
    await plane.state(request, InstanceState.COMPLETED)


async def test_an_agent_that_says_the_version_is_believed(plane: ComputePlane) -> None:
    """6.6 [ext]: details.functionVersionId, for requests of an earlier release."""
    agent, version = await plane.cluster(), await plane.version()
    await agent.register()
    request = new_id()
    await serving(plane, agent, version, request)
    record = plane.record(request)
    assert record is not None
    path = f"{version.function_id}/versions/{version.id}"
    shown = await plane.platform.call("GET", f"/v2/nvcf/deployments/functions/{path}")
    public = shown["deployment"]["deploymentSpecifications"][0]["gpuSpecificationId"]
    await lose_instances(plane)
    said = {**DETAILS, "functionVersionId": version.id, "gpuSpecificationId": public}
    assert (await agent.report(request, record.id, "running", details=said))[0] == 200
    assert (await plane.state(request, RUNNING)).specification_id == SPECIFICATION


async def test_a_specification_that_is_gone_leaves_the_record_without_one(plane: ComputePlane) -> None:
    """6.6: the autoscaler replaces the instance before it ends it."""
    agent, version = await plane.cluster(), await plane.version()
    request = new_request_id(version.id, "0-A100-other-1x0")
    assert (await agent.report(request, f"0-sr-{request}", "running"))[0] == 200
    record = await plane.state(request, RUNNING)
    assert (record.specification_id, record.gpu, record.devices) == (None, None, 1)


async def test_what_nobody_knows_is_not_ended(plane: ComputePlane) -> None:
    """6.6: silence is no consent; no record is made, as nobody knows of what."""
    agent = await plane.cluster()
    for request in (new_id(), "sr-1", new_request_id(new_id(), SPECIFICATION)):
        assert (await agent.report(request, f"0-sr-{request}", "running"))[0] == 200
        assert (await agent.acknowledge(request))[0] == 404
        assert (await agent.ended(request, f"0-sr-{request}", "failed"))[0] == 404
        assert plane.record(request) is None
    said = {**DETAILS, "functionVersionId": new_id()}
    assert (await agent.report(new_id(), "0-sr-x", "running", details=said))[0] == 200


async def test_what_is_known_to_be_over_ends(plane: ComputePlane) -> None:
    """6.6: the record was deleted; the version was deleted; the cluster may not run it."""
    agent, version = await plane.cluster(), await plane.version()
    request = new_request_id(version.id, SPECIFICATION)
    await serving(plane, agent, version, request)
    record = plane.record(request)
    assert record is not None
    await plane.instances.delete(record.key)
    await eventually(lambda: plane.record(request) is None, "the record is deleted")
    assert (await agent.report(request, record.id, "running"))[0] == 412

    idle = await plane.platform.create_version()
    path = f"/v2/nvcf/functions/{idle.function_id}/versions/{idle.id}"
    await plane.platform.call("DELETE", path, expect=204)
    said = {**DETAILS, "functionVersionId": idle.id}
    assert (await agent.report(new_id(), "0-sr-x", "running", details=said))[0] == 412

    stranger = await plane.cluster(authorizedNCAIds=["account-one"])
    entry = plane.registered.entry(stranger.cluster_id)
    assert entry is not None
    other = entry.value.replace(nca_id="account-two", authorized_nca_ids=("account-two",))
    await plane.registered.update(stranger.cluster_id, other, entry.revision)
    request = new_request_id(version.id, SPECIFICATION)

    async def refused() -> bool:
        return (await stranger.report(request, f"0-sr-{request}", "running"))[0] == 412

    await eventually(refused, "412")


async def test_an_agent_cannot_fill_the_store(plane: ComputePlane) -> None:
    """6.6: a cluster gets no more records than it can have instances, twice over."""
    agent, version = await plane.cluster(), await plane.version()
    await agent.register(gpus=[])
    for _ in range(20):
        request = new_request_id(version.id, SPECIFICATION)
        assert (await agent.report(request, f"0-sr-{request}", "running"))[0] == 200

    def there() -> list[Instance]:
        return [each for each in plane.instances.values() if each.cluster_id == agent.cluster_id]

    await eventually(lambda: len(there()) == 16, "as many as may be")
    # Nor by ending what it has made up, since the records of ended instances stay for a while.
    for each in there():
        assert (await agent.ended(each.request_id, each.id, "failed"))[0] == 200
    await eventually(lambda: all(each.state is InstanceState.FAILED for each in there()), "all have ended")
    more = new_request_id(version.id, SPECIFICATION)
    assert (await agent.report(more, f"0-sr-{more}", "running"))[0] == 200
    assert plane.record(more) is None
    assert len(there()) == 16
