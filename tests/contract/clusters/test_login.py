"""How an agent logs in to the broker, and what it may do there (docs/reference/protocol.md, section 6.2)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import nats
import nats.errors
import pytest

from nvcf_proto.ids import new_id
from tests.support.peers.icms_agent import CREATION, TERMINATION, AgentPeer, broker_token
from tests.support.platform.icms import ComputePlane
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


async def refused(agent: AgentPeer, name: str | None = None) -> None:
    """The broker does not let the agent in."""
    with pytest.raises((nats.errors.Error, OSError, TimeoutError)):
        async with asyncio.timeout(15):
            await agent.connect(name=name)


async def denied(agent: AgentPeer, subject: str, body: Any = None) -> None:
    """The broker refuses a subject, and answers nothing."""
    before = len(agent.errors)
    with pytest.raises(nats.errors.TimeoutError):
        await agent.nats.request(subject, b"" if body is None else json.dumps(body).encode(), timeout=0.3)
    await eventually(lambda: len(agent.errors) > before, f"{subject} is denied")
    assert "permissions violation" in agent.errors[-1].lower()


async def test_a_cluster_key_opens_the_connection(plane: ComputePlane) -> None:
    """6.2: name nvca-queue-client/C and the token with the cluster's key."""
    agent = await plane.cluster()
    assert agent.nats.is_connected


@pytest.mark.parametrize("stream", [CREATION, TERMINATION])
async def test_the_consumers_exist_and_creating_them_again_is_no_error(
    plane: ComputePlane, stream: str
) -> None:
    """6.2: the gateway makes them at the registration; the agent's own CREATE has the same settings."""
    agent = await plane.cluster()
    subject = f"$JS.API.CONSUMER.INFO.{stream}.{stream}-{agent.cluster_id}"
    info = json.loads((await plane.client.request(subject, b"", timeout=10)).data)
    assert "error" not in info
    answer = await agent.create_consumer(stream)
    assert "error" not in answer, answer
    assert answer["config"]["filter_subjects"] == info["config"]["filter_subjects"]
    assert answer["config"]["ack_wait"] == info["config"]["ack_wait"]


async def test_the_streams_are_as_the_contract_says(plane: ComputePlane) -> None:
    """6.2: work queues in files, 96 hours, a million messages."""
    for stream, subjects in ((CREATION, "Create.NVCA.>"), (TERMINATION, "Terminate.NVCA.>")):
        answer = await plane.client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=10)
        config = json.loads(answer.data)["config"]
        assert config["subjects"] == [subjects]
        assert (config["retention"], config["storage"]) == ("workqueue", "file")
        assert (config["max_age"], config["max_msgs"]) == (96 * 3600 * 10**9, 1_000_000)


async def test_an_empty_pull_ends_by_itself(plane: ComputePlane) -> None:
    """6.2: 408 after the pull's time, and the next pull works."""
    agent = await plane.cluster()
    assert await agent.fetch(CREATION, seconds=0.3) == []
    assert await agent.fetch(TERMINATION, seconds=0.3) == []
    assert agent.errors == []


async def test_an_agent_sees_its_own_messages_only(plane: ComputePlane) -> None:
    """6.2: one consumer for each cluster."""
    one, other = await plane.cluster(), await plane.cluster()
    version = await plane.version()
    request = await plane.order(version, one.cluster_id)
    assert await other.fetch(CREATION, seconds=0.3) == []
    assert (await one.creation()).request_id == request


async def test_it_cannot_pull_or_acknowledge_for_another_cluster(plane: ComputePlane) -> None:
    """6.2: rights name the cluster's own two consumers."""
    one, other = await plane.cluster(), await plane.cluster()
    for stream in (CREATION, TERMINATION):
        theirs = f"{stream}-{other.cluster_id}"
        await denied(one, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{theirs}", {"batch": 1})
        await denied(one, f"$JS.API.CONSUMER.CREATE.{stream}.{theirs}", {})
        await denied(one, f"$JS.ACK.{stream}.{theirs}.1.1.1.1.0")


@pytest.mark.parametrize(
    "subject",
    [
        "$JS.API.STREAM.LIST",
        f"$JS.API.STREAM.INFO.{CREATION}",
        f"$JS.API.STREAM.PURGE.{CREATION}",
        f"$JS.API.STREAM.MSG.GET.{CREATION}",
        f"$JS.API.CONSUMER.LIST.{CREATION}",
        "$JS.API.STREAM.MSG.GET.KV_nvcf_api_keys",
        "$JS.API.CONSUMER.CREATE.KV_nvcf_api_keys",
        "$JS.API.INFO",
        "$KV.nvcf_instances.a.b",
        "Create.NVCA.Function.a.b.c",
        "Terminate.NVCA.a",
        "nvcf.icms.order",
        "nvcf.event.a",
        "nvcf.cancel.a",
        "rq.local.a.b",
    ],
)
async def test_it_can_do_nothing_else(plane: ComputePlane, subject: str) -> None:
    """6.2: exactly these rights."""
    agent = await plane.cluster()
    await denied(agent, subject, {})


@pytest.mark.parametrize("own", ["INFO", "DELETE", "PAUSE"])
async def test_it_cannot_ask_for_more_about_its_own_consumer(plane: ComputePlane, own: str) -> None:
    """6.2: CREATE, MSG.NEXT and ACK, no other call."""
    agent = await plane.cluster()
    await denied(agent, f"$JS.API.CONSUMER.{own}.{CREATION}.{CREATION}-{agent.cluster_id}", {})


async def test_it_subscribes_to_inboxes_only(plane: ComputePlane) -> None:
    """6.2: _INBOX.> and nothing that others publish."""
    agent = await plane.cluster()
    for subject in (">", "Create.NVCA.>", "$KV.>", "nvcf.>", "$JS.>"):
        before = len(agent.errors)
        await agent.nats.subscribe(subject)
        await eventually(lambda before=before: len(agent.errors) > before, f"{subject} is denied")  # type: ignore[misc]


async def test_its_consumer_cannot_be_widened_to_others_messages(plane: ComputePlane) -> None:
    """6.2: a work queue refuses a filter that overlaps that of another cluster's consumer."""
    agent, other = await plane.cluster(), await plane.cluster()
    for wanted in ("Create.NVCA.>", f"Create.NVCA.*.{other.cluster_id}.*.*"):
        answer = await agent.create_consumer(CREATION, filter_subjects=[wanted])
        assert "not unique" in answer["error"]["description"]


async def test_its_consumer_cannot_be_made_to_write_elsewhere(plane: ComputePlane) -> None:
    """6.2: a consumer that delivers by itself would publish into the control plane's account."""
    agent = await plane.cluster()
    version = await plane.version()
    target = "$KV.nvcf_instances.a.b"
    answer = await agent.create_consumer(CREATION, deliver_subject=target)
    assert "error" in answer, answer
    await plane.order(version, agent.cluster_id)
    await agent.creation()
    assert "a.b" not in plane.instances


@pytest.mark.parametrize("name", ["nvca-queue-client", "nvca-queue-client/", "worker", ""])
async def test_the_connection_name_must_say_which_cluster(plane: ComputePlane, name: str) -> None:
    """6.2: name nvca-queue-client/C."""
    agent = await plane.cluster(connect=False)
    if not name:
        with pytest.raises((nats.errors.Error, OSError, TimeoutError)):
            async with asyncio.timeout(15):
                await nats.connect(agent.broker, token=broker_token(agent.credential), allow_reconnect=False)
        return
    await refused(agent, name)


async def test_a_key_of_another_cluster_is_refused(plane: ComputePlane) -> None:
    """6.2: the id in the name must be the identity's."""
    one, other = await plane.cluster(connect=False), await plane.cluster(connect=False)
    await refused(one, f"nvca-queue-client/{other.cluster_id}")
    await refused(plane.agent(new_id(), one.credential))


@pytest.mark.parametrize("key", ["admin", "agent", "foreign"])
async def test_api_keys_that_are_not_bound_to_the_cluster_are_refused(plane: ComputePlane, key: str) -> None:
    """6.2: neither an administrator's key nor an unbound agent key is an agent's identity."""
    cluster = await plane.cluster(connect=False)
    await refused(plane.agent(cluster.cluster_id, plane.platform.keys[key]))


@pytest.mark.parametrize("credential", ["", "x", "nvcf-000000000000-" + "a" * 43, "a.b.c", "{}"])
async def test_rubbish_is_refused(plane: ComputePlane, credential: str) -> None:
    """6.2: no identity."""
    cluster = await plane.cluster(connect=False)
    await refused(plane.agent(cluster.cluster_id, credential))


async def test_a_worker_token_is_not_an_agents_identity(plane: ComputePlane) -> None:
    """6.2: workers and agents are in different accounts."""
    cluster = await plane.cluster(connect=False)
    version = await plane.version()
    token = await plane.platform.worker_token(version, new_id())
    await refused(plane.agent(cluster.cluster_id, token))


async def test_an_agent_with_inboxes_of_its_own_is_heard_by_nobody(plane: ComputePlane) -> None:
    """6.2: with "inbox": "own" in the token, other agents cannot listen to what it gets."""
    own, spy = await plane.cluster(connect=False), await plane.cluster()
    version = await plane.version()
    heard: list[str] = []

    async def hear(message: Any) -> None:
        heard.append(message.subject)

    for subject in ("_INBOX.>", "_INBOX.*.*.*", "_INBOX.*.*.>"):
        await spy.nats.subscribe(subject, cb=hear)
    await spy.nats.flush()
    prefix = f"_INBOX.agent.{own.cluster_id}"
    own.client = await nats.connect(
        own.broker,
        token=broker_token(own.credential, inbox="own"),
        name=f"nvca-queue-client/{own.cluster_id}",
        inbox_prefix=prefix,
        error_cb=own.on_error,
    )
    request = await plane.order(version, own.cluster_id)
    assert (await own.creation()).request_id == request
    assert "error" not in await own.create_consumer(TERMINATION)
    await spy.nats.flush()
    assert heard == []
    for subject in ("_INBOX.>", "_INBOX.agent.>", f"_INBOX.agent.{spy.cluster_id}.>"):
        before = len(own.errors)
        await own.nats.subscribe(subject)
        await eventually(lambda before=before: len(own.errors) > before, f"{subject} is denied")  # type: ignore[misc]
