"""What NVIDIA's agent was seen doing with its queues (docs/reference/protocol.md, section 6.9)."""

from __future__ import annotations

import contextlib
import json

import pytest

from nvcf_proto.ids import new_id
from tests.support.peers.icms_agent import CREATION, TERMINATION, AgentPeer
from tests.support.platform.icms import ComputePlane
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


async def running(plane: ComputePlane) -> tuple[AgentPeer, str, str]:
    """Return an agent, and the request and instance that it runs."""
    agent = await plane.cluster()
    request = await plane.running(agent, await plane.version())
    return agent, request, f"0-sr-{request}"


# --- 5 and 6: consumers and streams that are lost


async def test_consumers_that_are_gone_come_back_with_a_heartbeat(plane: ComputePlane) -> None:
    """6.9 (5): the agent never makes them again, so the gateway does."""
    agent, version = await plane.cluster(), await plane.version()
    for stream in (CREATION, TERMINATION):
        subject = f"$JS.API.CONSUMER.DELETE.{stream}.{stream}-{agent.cluster_id}"
        await plane.client.request(subject, b"", timeout=10)
    request = await plane.order(version, agent.cluster_id)

    async def there() -> bool:
        await agent.heartbeat()
        subject = f"$JS.API.CONSUMER.INFO.{CREATION}.{CREATION}-{agent.cluster_id}"
        return "error" not in json.loads((await plane.client.request(subject, b"", timeout=10)).data)

    await eventually(there, "the consumer", interval=0.5)
    assert (await agent.creation()).request_id == request


async def test_streams_that_are_lost_come_back_and_take_messages(plane: ComputePlane) -> None:
    """6.9 (5), (6): memory streams of NVIDIA's are lost with the broker; ours are made again at once."""
    agent, version = await plane.cluster(), await plane.version()
    for stream in (CREATION, TERMINATION):
        await plane.client.request(f"$JS.API.STREAM.DELETE.{stream}", b"", timeout=10)
    request = new_id()
    await plane.write(version, agent.cluster_id, request, "0-H100-NCP.GPU.H100_1x-1x0")

    async def published() -> bool:
        await agent.heartbeat()
        with contextlib.suppress(AssertionError):
            await plane.order(version, agent.cluster_id, request_id=request, write=False)
            return True
        return False

    await eventually(published, "the stream", interval=0.5)
    assert (await agent.creation(seconds=20)).request_id == request


# --- 7 and 8: messages that are not acknowledged


async def test_a_message_that_is_refused_for_now_comes_again(plane: ComputePlane) -> None:
    """6.9 (8): a NAK for lack of room; the message stays the cluster's, and a later one is not held up."""
    agent, version = await plane.cluster(), await plane.version()
    first = await plane.order(version, agent.cluster_id)
    created = await agent.creation()
    await agent.confirm(created.message, b'-NAK {"delay": 1000000000}')
    second = await plane.order(version, agent.cluster_id)
    assert (await agent.creation()).request_id == second
    assert (await agent.creation()).request_id == first


async def test_a_message_that_is_no_json_does_not_stop_others(plane: ComputePlane) -> None:
    """6.9 (7): neither acknowledged nor refused, it comes again every 360 s; others pass."""
    agent, version = await plane.cluster(), await plane.version()
    subject = f"Create.NVCA.Function.{agent.cluster_id}.H100.NCP|GPU|H100"
    await plane.client.request(subject, b"no json", timeout=10)
    request = await plane.order(version, agent.cluster_id)
    poison, good = await agent.fetch(CREATION, batch=2, seconds=5)
    assert poison.data == b"no json"
    assert json.loads(good.data)["requestId"] == request


async def test_terminations_pass_while_creations_wait(plane: ComputePlane) -> None:
    """6.2: a cordoned or full agent leaves creations where they are."""
    agent, request, instance = await running(plane)
    await plane.order(await plane.version(), agent.cluster_id)
    await plane.terminate(request)
    assert (await agent.termination())["instanceIds"] == [instance]
