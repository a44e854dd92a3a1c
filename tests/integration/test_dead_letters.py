"""The worker of a request's last delivery crashes: the caller gets an error, and the queue is empty."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from nvcf_broker.connection import connect_broker
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.results.dead_letters import SOON_SECONDS, DeadLetters
from nvcf_gateway.results.hand_backs import HandBacks
from nvcf_proto.headers import DELIVERIES as DELIVERIES_HEADER
from tests.support.platform.gateways import Platform, Version, messages_in, running_platform
from tests.support.waiting import eventually

DELIVERIES = 5
ACK_WAIT = "1"


async def call(platform: Platform, version: Version, **headers: str) -> tuple[int, dict[str, Any], str]:
    async with platform.session.post(
        platform.gateway.url + version.pexec, json={}, headers={**platform.authorization(), **headers}
    ) as response:
        body = await response.read()
        return response.status, json.loads(body) if body else {}, response.headers.get("NVCF-REQID", "")


async def die_over(client: Client, version: Version, times: int) -> None:
    """Take the request `times` times, like workers that crash on it at once."""
    stream = f"rq_local_{version.id}"
    inbox = client.new_inbox()
    taken = await client.subscribe(inbox)
    for _ in range(times):
        await client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers",
            json.dumps({"batch": 1, "expires": 20_000_000_000}).encode(),
            reply=inbox,
        )
        message = await taken.next_msg(timeout=60)
        assert message.data, message.headers
    await taken.unsubscribe()


async def wait_as_worker(client: Client, version: Version) -> Subscription:
    """Pull one more message: the broker checks the deliveries of messages only while there is a pull."""
    stream = f"rq_local_{version.id}"
    inbox = client.new_inbox()
    taken = await client.subscribe(inbox)
    await client.publish(
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers",
        json.dumps({"batch": 1, "expires": 60_000_000_000}).encode(),
        reply=inbox,
    )
    return taken


async def test_a_request_that_kills_every_worker_ends_with_an_error(tmp_path: Path) -> None:
    async with running_platform(tmp_path, gateways=2, flags=("--ack-wait", ACK_WAIT)) as platform:
        version = await platform.deployed_version()
        client = await connect_broker(platform.broker.url, platform.broker.credentials_file, name="test")
        try:
            waiting = asyncio.create_task(call(platform, version))
            await eventually(lambda: _queued(client, version, 1), "the request is queued")
            await die_over(client, version, DELIVERIES)
            assert not waiting.done()
            await wait_as_worker(client, version)
            status, problem, request_id = await waiting
            assert status == 500
            assert problem["type"] == "urn:nvcf-worker-service:problem-details:too-many-deliveries"
            assert request_id in problem["detail"]
            assert f"{DELIVERIES} times" in problem["detail"]
            await platform.queue_is_empty(version)
        finally:
            await client.close()


async def test_a_poll_finds_the_error_when_the_gateway_of_the_call_is_gone(tmp_path: Path) -> None:
    async with running_platform(tmp_path, gateways=2, flags=("--ack-wait", ACK_WAIT)) as platform:
        version = await platform.deployed_version()
        client = await connect_broker(platform.broker.url, platform.broker.credentials_file, name="test")
        try:
            waiting = asyncio.create_task(call(platform, version, **{"Idempotency-Key": "again"}))
            await eventually(lambda: _queued(client, version, 1), "the request is queued")
            platform.gateway.child.kill()
            await asyncio.wait([waiting])
            assert waiting.exception() is not None
            await die_over(client, version, DELIVERIES)
            await wait_as_worker(client, version)
            await platform.queue_is_empty(version)
            platform.gateways.pop(0)
            status, problem, _ = await call(platform, version, **{"Idempotency-Key": "again"})
            assert (status, problem["title"]) == (500, "Too Many Deliveries")
        finally:
            await client.close()


async def test_a_sweep_ends_missed_dead_letters(tmp_path: Path) -> None:
    async with running_platform(tmp_path, flags=("--ack-wait", ACK_WAIT)) as platform:
        version = await platform.deployed_version()
        client = await connect_broker(platform.broker.url, platform.broker.credentials_file, name="test")
        try:
            waiting = asyncio.create_task(call(platform, version))
            await eventually(lambda: _queued(client, version, 1), "the request is queued")
            platform.gateway.child.kill()
            await asyncio.wait([waiting])
            waiting.exception()
            advisories = await client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*.*")
            await die_over(client, version, DELIVERIES)
            await wait_as_worker(client, version)
            await advisories.next_msg(timeout=60)
            assert await _queued(client, version, 1)
            requests = ReplyInbox(client)
            await requests.start()
            config = GatewayConfig(("", 0), ("", 0), platform.broker.url, tmp_path / "key")
            queue = RequestQueue(client, requests, config)
            async with BackgroundTasks() as owner:
                sweep = DeadLetters(requests, queue, owner, ("local",), lambda: (version.id,), HandBacks(0.0))
                await sweep.sweep_one(version.id)
            assert await _queued(client, version, 0)
        finally:
            await client.close()


@pytest.mark.slow
async def test_a_gateway_that_starts_finds_what_was_missed_before(tmp_path: Path) -> None:
    """It does not know how the deliveries ended, so it queues the request again."""
    async with running_platform(tmp_path, flags=("--ack-wait", ACK_WAIT)) as platform:
        version = await platform.deployed_version()
        client = await connect_broker(platform.broker.url, platform.broker.credentials_file, name="test")
        try:
            waiting = asyncio.create_task(call(platform, version, **{"Idempotency-Key": "missed"}))
            await eventually(lambda: _queued(client, version, 1), "the request is queued")
            platform.gateway.child.kill()
            await asyncio.wait([waiting])
            waiting.exception()
            advisories = await client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.*.*")
            await die_over(client, version, DELIVERIES)
            taken = await wait_as_worker(client, version)
            await advisories.next_msg(timeout=60)
            await platform.start_gateway("--ack-wait", ACK_WAIT)
            again = await taken.next_msg(timeout=1.5 * SOON_SECONDS + 10)
            assert (again.headers or {})[DELIVERIES_HEADER] == str(DELIVERIES)
        finally:
            await client.close()


async def test_a_sweep_leaves_queued_and_in_flight_requests(tmp_path: Path) -> None:
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version()
        client = await connect_broker(platform.broker.url, platform.broker.credentials_file, name="test")
        calls = [asyncio.create_task(call(platform, version)) for _ in range(3)]
        try:
            await eventually(lambda: _queued(client, version, 3), "the requests are queued")
            await die_over(client, version, 1)
            requests = ReplyInbox(client)
            await requests.start()
            config = GatewayConfig(("", 0), ("", 0), platform.broker.url, tmp_path / "key")
            queue = RequestQueue(client, requests, config)
            assert await queue.stuck(version.id) is None
        finally:
            for waiting in calls:
                waiting.cancel()
            await client.close()


async def _queued(client: Client, version: Version, number: int) -> bool:
    try:
        return await messages_in(client, f"rq_local_{version.id}") == number
    except KeyError:
        return number == 0
