"""A2: tracking records end with their use, and no number of them blocks other callers.

Kind: a shared stream with a fixed limit, and records that outlive their use.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from nats.aio.client import Client

from nvcf_proto.subjects import more_tracking_stream, tracking_stream
from tests.contract.gateway.test_polling import PEXEC, Answer, call
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version, messages_in
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@contextlib.asynccontextmanager
async def broker_of(platform: Platform) -> AsyncIterator[Client]:
    client = await platform.broker_client()
    try:
        yield client
    finally:
        await client.close()


async def records(client: Client) -> int:
    streams = (tracking_stream("local"), more_tracking_stream("local"))
    return sum([await messages_in(client, stream) for stream in streams])


async def set_limit(client: Client, limit: int) -> None:
    stream = tracking_stream("local")
    info = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
    config = {**json.loads(info.data)["config"], "max_msgs": limit}
    reply = await client.request(f"$JS.API.STREAM.UPDATE.{stream}", json.dumps(config).encode(), timeout=5)
    assert "error" not in json.loads(reply.data)


def posted(
    platform: Platform, version: Version, key: str, *, seconds: str = "20"
) -> Coroutine[Any, Any, Answer]:
    if key:
        return call(platform, "POST", version.pexec, b"x", Idempotency_Key=key, NVCF_POLL_SECONDS=seconds)
    return call(platform, "POST", version.pexec, b"x", NVCF_POLL_SECONDS=seconds)


async def told_to_poll(platform: Platform, version: Version, key: str = "") -> str:
    answer = await posted(platform, version, key, seconds="1")
    assert answer.status == 202
    return str(answer.headers["nvcf-reqid"])


async def test_a_call_that_is_answered_directly_leaves_no_record(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with broker_of(platform) as client, peer_worker(platform, version) as worker:
        before = await records(client)
        for number in range(3):
            first = asyncio.create_task(
                call(platform, "POST", version.pexec, b"x", Idempotency_Key=f"direct-{number}")
            )
            await (await worker.pull()).answer()
            assert (await first).status == 200
        assert await records(client) == before


@pytest.mark.parametrize("key", ["", "left"])
async def test_a_call_whose_caller_left_leaves_no_record(platform: Platform, key: str) -> None:
    version = await platform.deployed_version()
    async with broker_of(platform) as client, peer_worker(platform, version) as worker:
        before = await records(client)
        first = asyncio.create_task(posted(platform, version, key))
        work = await worker.pull()
        first.cancel()
        await asyncio.wait({first})
        if key:

            async def taken() -> bool:
                return (await work.post(b"HTTP/1.1 200 OK\r\n\r\nfound"))[0] == 200

            await eventually(taken, "the answer is taken")
        await work.ack()
        await platform.queue_is_empty(version)
        assert await records(client) == before


@pytest.mark.parametrize("key", ["", "poll"])
async def test_a_stored_answer_ends_the_record(platform: Platform, key: str) -> None:
    """The answer says the same as the record, also whether it stays after a poll."""
    version = await platform.deployed_version()
    async with broker_of(platform) as client, peer_worker(platform, version) as worker:
        before = await records(client)
        request_id = await told_to_poll(platform, version, key)
        assert await records(client) == before + 1
        assert (await (await worker.pull()).answer(b"late"))[0] == 200
        assert await records(client) == before
        for _ in range(2):
            answer = await call(platform, "GET", PEXEC + request_id)
            assert (answer.status, answer.body) == (200, b"late")
        assert await records(client) == before


async def test_a_full_stream_blocks_nobody(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with broker_of(platform) as client, peer_worker(platform, version) as worker:
        before = await records(client)
        await set_limit(client, max(1, before))
        try:
            ids = [await told_to_poll(platform, version) for _ in range(3)]
            first = asyncio.create_task(call(platform, "POST", version.pexec, b"x", Idempotency_Key="full"))
            for _ in range(4):
                await (await worker.pull()).answer(b"done")
            assert (await first).status == 200
            for request_id in ids:
                assert (await call(platform, "GET", PEXEC + request_id)).body == b"done"
        finally:
            await set_limit(client, 100_000)


async def test_a_poll_finds_a_request_beyond_the_limit(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with broker_of(platform) as client, peer_worker(platform, version) as worker:
        await set_limit(client, 1)
        try:
            ids = [await told_to_poll(platform, version) for _ in range(2)]
            waiting = [asyncio.create_task(call(platform, "GET", PEXEC + request_id)) for request_id in ids]
            for _ in ids:
                await (await worker.pull()).answer(b"done")
            assert [answer.body for answer in await asyncio.gather(*waiting)] == [b"done"] * 2

            async def no_record() -> bool:
                return await messages_in(client, more_tracking_stream("local")) == 0

            await eventually(no_record, "the record beyond the limit is removed")
        finally:
            await set_limit(client, 100_000)
