"""Broker and gateway away for a while (docs/reference/protocol.md, sections 6.2 and 6.9)."""

from __future__ import annotations

import contextlib
import json
import signal

import nats.errors
import pytest

from tests.support.peers.icms_agent import CREATION, AgentPeer
from tests.support.platform.icms import ComputePlane
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


async def can_connect(agent: AgentPeer) -> bool:
    """Connect, and say whether the connection is good."""
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        client = await agent.connect()
        await client.flush(5)
        return client.is_connected
    return False


async def restart_broker(plane: ComputePlane) -> None:
    """Restart the broker, and wait until everything writes to it again."""
    await plane.platform.broker.restart()

    async def writes() -> bool:
        async with plane.platform.session.get(plane.platform.gateway.url + "/health/ready") as response:
            return response.status == 200 and plane.client.is_connected

    await eventually(writes, "the gateway is ready again", interval=0.2)


async def test_a_consumer_that_was_changed_is_set_right(plane: ComputePlane) -> None:
    """6.2: at the next look its settings are those of the contract again."""
    agent = await plane.cluster()
    answer = await agent.create_consumer(CREATION, ack_wait=3_600_000_000_000)
    assert "error" not in answer
    await restart_broker(plane)
    info = f"$JS.API.CONSUMER.INFO.{CREATION}.{CREATION}-{agent.cluster_id}"

    async def right() -> bool:
        with contextlib.suppress(nats.errors.Error, OSError):
            found = json.loads((await plane.client.request(info, b"", timeout=5)).data)
            return "config" in found and found["config"]["ack_wait"] == 360_000_000_000
        return False

    await eventually(right, "the ack wait", interval=0.2)


async def test_messages_and_sequences_outlive_the_broker(plane: ComputePlane) -> None:
    """6.9 (6): sequences go on, so that a new message is not taken for an old one; nothing is lost."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)

    async def last() -> int:
        answer = await plane.client.request(f"$JS.API.STREAM.INFO.{CREATION}", b"", timeout=5)
        return int(json.loads(answer.data)["state"]["last_seq"])

    before = await last()
    await agent.close()
    await restart_broker(plane)

    await eventually(lambda: can_connect(agent), "the agent connects again", interval=0.2)
    assert (await agent.creation(seconds=20)).request_id == request
    await plane.order(version, agent.cluster_id)
    assert await last() == before + 1


async def test_a_new_connection_waits_for_a_gateway_that_is_away(plane: ComputePlane) -> None:
    """6.2: the auth callout may be absent for a while; what is connected goes on, and nothing is lost."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    gateway = plane.platform.gateway
    gateway.child.kill(signal.SIGSTOP)
    try:
        assert not await can_connect(plane.agent(agent.cluster_id, agent.credential))
        assert (await agent.creation()).request_id == request
    finally:
        gateway.child.kill(signal.SIGCONT)

    again = plane.agent(agent.cluster_id, agent.credential)
    await eventually(lambda: can_connect(again), "a gateway answers again", interval=0.2)
