"""Events, newest first and only one's own; and the clusters there are."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from nats.aio.client import Client

from nvcf_broker.kv import KvMirror
from nvcf_proto.compute import (
    CLUSTERS_BUCKET,
    EVENTS_STREAM,
    Cluster,
    Event,
    GpuPool,
    event_stream_config,
    event_subject,
)
from nvcf_proto.ids import new_id
from tests.support.platform.gateways import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def client(platform: Platform) -> AsyncIterator[Client]:
    """A raw broker connection, and the stream that the autoscaler makes."""
    connected = await platform.broker_client()
    config = json.dumps(event_stream_config()).encode()
    await connected.request(f"$JS.API.STREAM.CREATE.{EVENTS_STREAM}", config, timeout=5)
    yield connected
    await connected.close()


async def record(client: Client, version_id: str, text: str, kind: str = "scaling") -> None:
    event = Event(time.time(), kind, version_id, text, function_name="f", data={"desired": "1"})
    await client.jetstream().publish(event_subject(version_id), event.to_json())


async def listed(platform: Platform, query: str = "", key: str = "list") -> list[str]:
    answer = await platform.call("GET", f"/v2/nvcf/events{query}", key=key)
    return [event["text"] for event in answer["events"]]


async def test_nothing_has_happened_before_there_is_a_stream(platform: Platform) -> None:
    await platform.create_version()
    assert await listed(platform) == []


async def test_events_come_newest_first(platform: Platform, client: Client) -> None:
    one, two = await platform.create_version(), await platform.create_version()
    for number in range(3):
        await record(client, one.id, f"one {number}")
        await record(client, two.id, f"two {number}", kind="instance")
    assert (await listed(platform))[:3] == ["two 2", "one 2", "two 1"]
    assert await listed(platform, f"?functionVersionId={one.id}") == ["one 2", "one 1", "one 0"]
    assert await listed(platform, f"?functionVersionId={one.id}&limit=1") == ["one 2"]
    assert await listed(platform, f"?functionVersionId={two.id}&kind=scaling") == []
    assert await listed(platform, f"?functionVersionId={new_id()}") == []
    (event,) = (await platform.call("GET", f"/v2/nvcf/events?functionVersionId={one.id}&limit=1"))["events"]
    assert event["data"] == {"desired": "1"}
    assert event["at"].endswith("Z")


async def test_many_events_are_read_in_windows(platform: Platform, client: Client) -> None:
    version, other = await platform.create_version(), await platform.create_version()
    await record(client, version.id, "the first")
    body = Event(time.time(), "scaling", other.id, "noise").to_json()
    stream = client.jetstream()
    await asyncio.gather(*(stream.publish(event_subject(other.id), body) for _ in range(1500)))
    await record(client, version.id, "the last")
    assert await listed(platform, f"?functionVersionId={version.id}") == ["the last", "the first"]
    texts = await listed(platform, "?limit=1000")
    assert len(texts) == 1000
    assert texts[0] == "the last"


async def test_events_of_other_accounts_are_not_shown(platform: Platform, client: Client) -> None:
    version = await platform.create_version()
    await record(client, version.id, "mine")
    assert await listed(platform, key="foreign") == []
    assert await listed(platform, f"?functionVersionId={version.id}", key="foreign") == []


@pytest.mark.parametrize(
    "query",
    ["?limit=0", "?limit=1001", "?limit=x", "?limit=%D9%A3", "?kind=other", "?functionVersionId=x"],
)
async def test_wrong_queries_are_told(platform: Platform, query: str) -> None:
    await platform.call("GET", f"/v2/nvcf/events{query}", expect=400)


async def test_reading_needs_the_scope(platform: Platform) -> None:
    for path in ("/v2/nvcf/events", "/v2/nvcf/clusters"):
        await platform.call("GET", path, key="invoke", expect=403)


async def test_clusters(platform: Platform, client: Client) -> None:
    cluster = Cluster("berlin-1", "eu", time.time(), (GpuPool("L40S", "process", 4, 3),), group="blue")
    mirror = KvMirror(client, CLUSTERS_BUCKET, Cluster.from_json, Cluster.to_json)
    async with mirror:
        await mirror.ready()
        await mirror.put(cluster.id, cluster)
    async with asyncio.timeout(10):
        while not (found := (await platform.call("GET", "/v2/nvcf/clusters", key="list"))["clusters"]):
            await asyncio.sleep(0.02)
    assert (found[0]["clusterId"], found[0]["clusterGroup"]) == ("berlin-1", "blue")
    (pool,) = found[0]["pools"]
    assert {
        "gpu": "L40S",
        "instanceType": "process",
        "instancesTotal": 4,
        "instancesFree": 3,
    }.items() <= pool.items()
