"""Key-value mirrors and guarded writes, against the real nats-server."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.errors import (
    BrokerError,
    BrokerUnavailableError,
    KeyExistsError,
    RevisionConflictError,
)
from nvcf_broker.kv import KvMirror
from nvcf_broker.server import LocalBroker
from tests.support.waiting import eventually


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[LocalBroker]:
    async with LocalBroker(tmp_path / "broker") as running:
        yield running


@pytest.fixture
async def client(broker: LocalBroker) -> AsyncIterator[BrokerClient]:
    connection = await connect_broker(broker.url, broker.credentials_file, name="test")
    yield connection
    await connection.close()


def decode_record(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def encode_record(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def mirror_of(
    client: BrokerClient, bucket: str = "things", *, resync_seconds: float = 60.0
) -> KvMirror[dict[str, Any]]:
    return KvMirror(client, bucket, decode_record, encode_record, resync_seconds=resync_seconds)


async def test_a_mirror_follows_others_and_sees_its_own_writes_at_once(client: BrokerClient) -> None:
    async with mirror_of(client) as mine, mirror_of(client) as other:
        await asyncio.gather(mine.ready(), other.ready())
        revision = await mine.put("a.b", {"n": 1})
        assert mine.get("a.b") == {"n": 1}
        await other.wait_for(lambda mirror: mirror.get("a.b") == {"n": 1}, 60)
        await other.update("a.b", {"n": 2}, revision)
        await mine.wait_for(lambda mirror: mirror.get("a.b") == {"n": 2}, 60)
        await other.delete("a.b")
        await mine.wait_for(lambda mirror: "a.b" not in mirror, 60)
        assert mine.items() == []


async def test_guarded_writes(client: BrokerClient) -> None:
    async with mirror_of(client) as mirror:
        await mirror.ready()
        first = await mirror.create("key", {"n": 1})
        with pytest.raises(KeyExistsError):
            await mirror.create("key", {"n": 2})
        await mirror.update("key", {"n": 3}, first)
        with pytest.raises(RevisionConflictError):
            await mirror.update("key", {"n": 4}, first)
        with pytest.raises(RevisionConflictError):
            await mirror.delete("key", first)
        entry = mirror.entry("key")
        assert entry is not None
        await mirror.delete("key", entry.revision)
        await mirror.create("key", {"n": 5})
        assert mirror.get("key") == {"n": 5}
        with pytest.raises(BrokerError, match="cannot be a key"):
            await mirror.put("a b", {})


async def test_an_unreadable_record_is_skipped(client: BrokerClient) -> None:
    async with mirror_of(client) as mirror:
        await mirror.ready()
        await mirror.put("good", {"n": 1})
        await mirror.put("turns-bad", {"n": 1})
        stream = client.jetstream()
        await stream.publish("$KV.things.turns-bad", b"\xff not json")
        await stream.publish("$KV.things.bad", b"[]")
        await mirror.put("last", {})
        await mirror.wait_for(lambda seen: "turns-bad" not in seen, 60)
        assert sorted(mirror.keys()) == ["good", "last"]
    async with mirror_of(client) as again:
        await again.ready()
        assert sorted(again.keys()) == ["good", "last"]


async def test_a_mirror_survives_a_crash_of_the_broker_and_learns_what_it_missed(
    broker: LocalBroker, client: BrokerClient
) -> None:
    writer = await connect_broker(broker.url, broker.credentials_file, name="writer")
    async with mirror_of(client, resync_seconds=1) as mirror, mirror_of(writer) as source:
        await asyncio.gather(mirror.ready(), source.ready())
        for number in range(20):
            await source.put(f"k{number}", {"n": number})
        await mirror.wait_for(lambda seen: len(seen) == 20, 60)
        await broker.kill()
        await broker.start()
        await eventually(lambda: writer.is_connected)
        # These changes send no event to the mirror, so only a new snapshot shows them.
        await writer.jetstream().purge_stream("KV_things", subject="$KV.things.k3")
        await source.put("k4", {"n": "new"})
        await source.delete("k5")
        await mirror.wait_for(lambda seen: "k5" not in seen and seen.get("k4") == {"n": "new"}, 60)
        # The first snapshot after the crash or a later one shows it.
        await mirror.wait_for(lambda seen: "k3" not in seen, 60)
        assert len(mirror) == 18
    await writer.close()


async def test_a_resync_notices_what_vanished_without_a_message(client: BrokerClient) -> None:
    async with mirror_of(client, resync_seconds=0.5) as mirror:
        await mirror.ready()
        await mirror.put("gone", {})
        await client.jetstream().purge_stream("KV_things", subject="$KV.things.gone")
        await mirror.wait_for(lambda seen: "gone" not in seen, 60)


async def test_a_bucket_that_was_made_anew_replaces_the_old_one(client: BrokerClient) -> None:
    async with mirror_of(client, resync_seconds=0.5) as mirror:
        await mirror.ready()
        for number in range(10):
            await mirror.put("key", {"n": number})
        await client.jetstream().delete_stream("KV_things")
        await mirror.wait_for(lambda seen: len(seen) == 0, 60)
        await mirror.put("key", {"n": "new"})
        assert mirror.get("key") == {"n": "new"}


async def test_writes_fail_with_a_reason_while_the_broker_is_away(
    broker: LocalBroker, client: BrokerClient
) -> None:
    async with mirror_of(client) as mirror:
        await mirror.ready()
        await mirror.put("key", {"n": 1})
        await broker.kill()
        with pytest.raises(BrokerUnavailableError, match="cannot write key to things"):
            await mirror.put("key", {"n": 2})
        assert mirror.get("key") == {"n": 1}
        await broker.start()


async def test_change_callbacks_come_in_order(client: BrokerClient) -> None:
    seen: list[tuple[str, Any]] = []
    mirror: KvMirror[dict[str, Any]] = KvMirror(
        client, "things", decode_record, encode_record, on_change=lambda key, value: seen.append((key, value))
    )
    async with mirror:
        await mirror.ready()
        await mirror.put("k", {"n": 1})
        await mirror.put("k", {"n": 2})
        await mirror.delete("k")
        await mirror.delete("k")
    assert seen == [("k", {"n": 1}), ("k", {"n": 2}), ("k", None)]


async def test_many_records_arrive_completely(client: BrokerClient) -> None:
    stream = client.jetstream()
    async with mirror_of(client) as first:
        await first.ready()
    await asyncio.gather(
        *(stream.publish(f"$KV.things.k{number}", b'{"n":1}') for number in range(2000)),
    )
    async with mirror_of(client) as mirror:
        await mirror.ready()
        assert len(mirror) == 2000
