"""Several gateways: any of them may take any call (docs/reference/protocol.md, section 6.1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from nvcf_proto.models import InstanceState
from tests.support.peers.icms_agent import AgentPeer
from tests.support.platform.gateways import ACCOUNT
from tests.support.platform.icms import ComputePlane, running_compute_plane
from tests.support.platform.processes import end

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ComputePlane]:
    """Broker and two gateways."""
    async with running_compute_plane(tmp_path_factory.mktemp("replicas"), gateways=2) as running:
        yield running


def at(agent: AgentPeer, plane: ComputePlane, index: int) -> AgentPeer:
    """Return the same agent at one of the gateways."""
    agent.url = plane.platform.gateways[index].url
    return agent


async def test_each_call_at_another_gateway(two: ComputePlane) -> None:
    """6.1: what one has written the other knows at once, also before it has heard of it."""
    agent, version = await two.cluster(), await two.version()
    for _ in range(5):
        request = await two.order(version, agent.cluster_id)
        assert (await at(agent, two, 1).acknowledge(request))[0] == 200
        instance = f"0-sr-{request}"
        for index, state in enumerate(("starting", "running", "starting", "running")):
            assert (await at(agent, two, index % 2).report(request, instance, state))[0] == 200
        await two.state(request, InstanceState.RUNNING)
        assert (await at(agent, two, 1).ended(request, instance, "failed"))[0] == 200
        assert (await at(agent, two, 0).report(request, instance, "running"))[0] == 412
        assert (await at(agent, two, 0).acknowledge(request))[0] == 412


async def test_an_order_is_carried_out_once(two: ComputePlane) -> None:
    """6.8: the queue group of gateways gives each order to one of them."""
    agent, version = await two.cluster(), await two.version()
    requests = await asyncio.gather(*(two.order(version, agent.cluster_id) for _ in range(20)))
    found: list[str] = []
    while len(found) < 20:
        found += [(await agent.creation()).request_id]
    assert sorted(found) == sorted(requests)
    assert await agent.fetch("CreateNvcaFunctionTaskStream", seconds=0.3) == []


async def test_the_same_report_at_both_at_once(two: ComputePlane) -> None:
    """6.6: optimistic locking between gateways."""
    agent = await two.cluster()
    request = await two.running(agent, await two.version())
    await two.terminate(request)
    instance = f"0-sr-{request}"
    body = {
        "status": "instance-terminated-by-user",
        "instanceState": "terminated",
        "requestState": "closed",
        "heldRequests": [],
    }

    async def post(index: int) -> int:
        url = f"{two.platform.gateways[index % 2].url}/v1/sirs/{request}/{instance}"
        async with two.platform.session.post(url, json=body, headers=agent.headers()) as response:
            return response.status

    assert set(await asyncio.gather(*(post(index) for index in range(12)))) == {200}
    record = await two.state(request, InstanceState.COMPLETED)
    assert record.reason == "scaled down"


async def test_a_name_at_both_at_once_is_one_cluster(two: ComputePlane) -> None:
    """6.5: unique in the account."""

    async def register(index: int) -> int:
        url = f"{two.platform.gateways[index % 2].url}/v1/accounts/{ACCOUNT}/clusters"
        async with two.platform.session.post(
            url, json={"clusterName": "at-both"}, headers=two.platform.authorization()
        ) as response:
            return response.status

    statuses = await asyncio.gather(*(register(index) for index in range(10)))
    assert sorted(statuses) == [200] + [409] * 9


async def test_a_report_that_says_nothing_new_to_an_old_copy(two: ComputePlane) -> None:
    """6.6: whatever gateway takes the last report, the record is what it says."""
    agent, version = await two.cluster(), await two.version()
    for _ in range(15):
        request = await two.order(version, agent.cluster_id)
        assert (await at(agent, two, 0).acknowledge(request))[0] == 200
        for index, state in ((0, "running"), (1, "starting"), (0, "running")):
            status, _ = await at(agent, two, index).report(request, f"0-sr-{request}", state)
            assert status == 200
        await two.state(request, InstanceState.RUNNING)


async def test_a_gateway_that_is_killed_loses_nothing(two: ComputePlane) -> None:
    """6.1: the others answer for every request; orders, reports and logins go on."""
    agent, version = await two.cluster(), await two.version()
    request = await two.running(agent, version)
    await end(two.platform.gateways.pop(0).child)
    at(agent, two, 0)
    assert (await agent.report(request, f"0-sr-{request}", "running"))[0] == 200
    another = await two.running(agent, version)
    assert another != request
    await agent.close()
    await agent.connect()
    assert (await agent.heartbeat())[1]["action"] == "ACCEPTED"
