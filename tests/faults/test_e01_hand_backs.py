"""E1: a delivery counts as an attempt when a worker started it; what workers hand back is no attempt."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from nvcf_broker.connection import connect_broker
from nvcf_proto.ids import new_id
from nvcf_proto.tokens import encode_broker_token
from tests.support.platform.gateways import Platform, Version, messages_in, running_platform
from tests.support.waiting import eventually

KILLER = """
import os, signal
from nvcf_worker import SyncRequest

def killer(request: SyncRequest) -> str:
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{request.attempt}\\n")
    if request.read() == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return "fine"
"""


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path, flags=("--wide-inbox", "--ack-wait", "2")) as started:
        yield started


async def nvcf_worker_connection(platform: Platform, version: Version) -> Client:
    """Connect as a worker of another make does, with a worker's token."""
    client = Client()
    token = encode_broker_token(await platform.worker_token(version, new_id()))
    await client.connect(platform.broker.url, token=token)
    return client


async def hand_back_everything(client: Client, version: Version, batch: int) -> list[int]:
    """Open a pull and nak what it brings, as a worker that drains. The list grows by one for each nak."""
    handed_back: list[int] = []

    async def nak(message: Any) -> None:
        if message.reply.startswith("$JS.ACK."):
            handed_back.append(int(message.reply.split(".")[4]))
            await client.publish(message.reply, b"-NAK")

    stream, inbox = f"rq_local_{version.id}", client.new_inbox()

    async def exists() -> bool:
        found = await client.request(f"$JS.API.CONSUMER.INFO.{stream}.{stream}_workers", timeout=10)
        return "error" not in json.loads(found.data)

    await eventually(exists, "the queue exists")
    await client.subscribe(inbox, cb=nak)
    pull = {"expires": 300_000_000_000, "batch": batch, "idle_heartbeat": 5_000_000_000}
    await client.publish(
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers", json.dumps(pull).encode(), reply=inbox
    )
    await client.flush()
    return handed_back


async def call(platform: Platform, version: Version, body: bytes = b"", seconds: int = 60) -> tuple[int, str]:
    headers = {**platform.authorization(), "NVCF-POLL-SECONDS": str(seconds)}
    url = platform.gateway.url + version.pexec
    async with platform.session.post(url, data=body, headers=headers) as response:
        return response.status, await response.text()


@pytest.mark.parametrize("batch", [16, 120])
async def test_another_worker_serves_what_a_draining_one_hands_back(
    platform: Platform, tmp_path: Path, batch: int
) -> None:
    (tmp_path / "function.py").write_text(KILLER)
    version = await platform.deployed_version()
    client = await nvcf_worker_connection(platform, version)
    try:
        waiting = asyncio.create_task(call(platform, version, b"x"))
        handed_back = await hand_back_everything(client, version, batch)
        await eventually(lambda: len(handed_back) == batch, "the pull is used up")
        assert not waiting.done()
        await platform.start_worker(
            version, tmp_path / "function.py", "killer", environment={"NOTES": str(tmp_path / "notes")}
        )
        assert await waiting == (200, "fine")
        assert int((tmp_path / "notes").read_text()) == batch + 1, "all deliveries are told"
        await platform.queue_is_empty(version)
    finally:
        await client.close()


async def test_a_caller_that_leaves_takes_a_request_along_that_was_queued_again(
    platform: Platform, tmp_path: Path
) -> None:
    version = await platform.deployed_version(keep_queued=False)
    client = await nvcf_worker_connection(platform, version)
    try:
        waiting = asyncio.create_task(call(platform, version, seconds=1))
        handed_back = await hand_back_everything(client, version, 13)
        assert await waiting == (504, "")
        assert len(handed_back) == 13
        await platform.queue_is_empty(version)
    finally:
        await client.close()


async def test_a_request_that_kills_its_workers_is_stopped_however_often_it_was_handed_back(
    platform: Platform, tmp_path: Path
) -> None:
    (tmp_path / "function.py").write_text(KILLER)
    notes = tmp_path / "notes"
    notes.touch()
    version = await platform.deployed_version()
    client = await nvcf_worker_connection(platform, version)
    shared = tmp_path / "shared"
    ended, instance_id = asyncio.Event(), new_id()

    async def instance() -> None:
        """Restart the instance whenever it is killed. Its journal hands the request back at once."""
        while not ended.is_set():
            child = await platform.start_worker(
                version,
                tmp_path / "function.py",
                "killer",
                instance_id=instance_id,
                shared=shared,
                environment={"NOTES": str(notes)},
            )
            gone, over = asyncio.create_task(child.wait(300)), asyncio.create_task(ended.wait())
            await asyncio.wait({gone, over}, return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            if not gone.done():
                child.kill(signal.SIGKILL)
            assert await gone == -signal.SIGKILL

    try:
        waiting = asyncio.create_task(call(platform, version, b"kill", seconds=120))
        handed_back = await hand_back_everything(client, version, 7)
        await eventually(lambda: len(handed_back) == 7, "the pull is used up")
        running = asyncio.create_task(instance())
        status, text = await waiting
        ended.set()
        await running
        assert (status, json.loads(text)["title"]) == (500, "Too Many Deliveries")
        assert 5 <= len(notes.read_text().splitlines()) <= 9, "at least five attempts, and an end"
        await platform.queue_is_empty(version)
    finally:
        ended.set()
        await client.close()


async def test_silence_counts_as_an_attempt(platform: Platform) -> None:
    """Workers of other makes that are killed say nothing: the broker delivers again after the ack wait."""
    version = await platform.deployed_version()
    client = await connect_broker(platform.broker.url, platform.broker.credentials_file, name="test")
    stream, inbox = f"rq_local_{version.id}", client.new_inbox()
    deliveries: list[int] = []

    async def take(message: Any) -> None:
        if message.reply.startswith("$JS.ACK."):
            deliveries.append(int(message.reply.split(".")[4]))

    try:
        await client.subscribe(inbox, cb=take)
        waiting = asyncio.create_task(call(platform, version, seconds=120))
        await eventually(lambda: queued(client, stream), "queued")
        await client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers",
            json.dumps({"expires": 300_000_000_000, "batch": 16}).encode(),
            reply=inbox,
        )
        status, text = await waiting
        assert (status, json.loads(text)["title"]) == (500, "Too Many Deliveries")
        assert deliveries == [1, 2, 3, 4, 5]
    finally:
        await client.close()


async def queued(client: Client, stream: str) -> bool:
    try:
        return await messages_in(client, stream) == 1
    except KeyError:
        return False
