"""[ext] A call that was never executed gives its Idempotency-Key back at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nvcf_gateway.results.idempotency_keys import SETTLED_SECONDS
from nvcf_proto.compute import wake_subject
from tests.contract.gateway.test_polling import Answer, call
from tests.support.peers.worker import PeerWorker, peer_worker
from tests.support.platform.gateways import Platform, Version, messages_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUTES = pytest.mark.parametrize("route", ["pexec", "exec"])
MISSING = "0b0e0a52-6f4c-4d3a-9d59-9e3f0f0c1a2b"
AT_ONCE = 5.0
"""Half of the time that a follower waits for a call whose key is still held."""


def body_of(route: str) -> bytes:
    return json.dumps({"requestBody": {"a": 1}}).encode() if route == "exec" else b"the body"


async def repeated(
    platform: Platform, worker: PeerWorker, version: Version, route: str, key: str, data: Any = None
) -> None:
    """Repeat the call with its key: a worker gets it at once, and its response arrives."""
    path = version.exec if route == "exec" else version.pexec
    again = asyncio.create_task(
        call(platform, "POST", path, data or body_of(route), Idempotency_Key=key, NVCF_POLL_SECONDS="20")
    )
    async with asyncio.timeout(AT_ONCE):
        work = await worker.pull()
    await work.answer(b"[1]")
    assert (await again).status == 200


async def keys_held(platform: Platform) -> int:
    """How many idempotency keys have a record."""
    client = await platform.broker_client()
    try:
        return await messages_in(client, "KV_nvcf_idempotency")
    finally:
        await client.close()


@ROUTES
@pytest.mark.parametrize(("references", "status"), [(MISSING, 404), (",".join(map(str, range(100))), 400)])
async def test_refused_assets(platform: Platform, route: str, references: str, status: int) -> None:
    version = await platform.deployed_version()
    path = version.exec if route == "exec" else version.pexec
    async with peer_worker(platform, version) as worker:
        refused = await call(
            platform,
            "POST",
            path,
            body_of(route),
            Idempotency_Key="assets",
            NVCF_INPUT_ASSET_REFERENCES=references,
        )
        assert refused.status == status
        await repeated(platform, worker, version, route, "assets")
    await platform.queue_is_empty(version)


@ROUTES
async def test_refused_by_the_queue(platform: Platform, route: str) -> None:
    """The broker says for certain that it has not stored the request."""
    version = await platform.deployed_version()
    path = version.exec if route == "exec" else version.pexec
    client = await platform.broker_client()
    stream = f"rq_local_{version.id}"

    async def limit(size: int) -> None:
        info = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
        config = {**json.loads(info.data)["config"], "max_msg_size": size}
        answer = await client.request(
            f"$JS.API.STREAM.UPDATE.{stream}", json.dumps(config).encode(), timeout=5
        )
        assert "error" not in json.loads(answer.data)

    try:
        async with peer_worker(platform, version) as worker:
            await limit(10)
            refused = await call(
                platform, "POST", path, body_of(route), Idempotency_Key="queue", NVCF_POLL_SECONDS="1"
            )
            assert refused.status == 503
            await limit(-1)
            await repeated(platform, worker, version, route, "queue")
        await platform.queue_is_empty(version)
    finally:
        await client.close()


async def test_an_upload_that_breaks_off(platform: Platform) -> None:
    version = await platform.deployed_version()
    host, port = platform.gateway.url.removeprefix("http://").split(":")
    data = b"x" * 100_000
    client = await platform.broker_client()
    async with peer_worker(platform, version) as worker:
        queued = await client.subscribe(wake_subject(version.id))
        await client.flush()
        cancels = await worker.client.subscribe(f"nvcf.cancel.{version.id}")
        await worker.client.flush()
        before = await keys_held(platform)
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {version.pexec} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {platform.keys['admin']}\r\n"
            f"Idempotency-Key: upload\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data[:40_000]
        )
        work = await worker.pull()
        # The gateway knows that the request is in the queue; else it keeps the key.
        await queued.next_msg(timeout=10)
        writer.transport.abort()
        assert (await cancels.next_msg(timeout=10)).data.decode() == work.request.requestId
        await work.ack()
        # Nobody is there to be told that the key is free again.
        async with asyncio.timeout(AT_ONCE):
            while await keys_held(platform) > before:
                await asyncio.sleep(0.02)
        await repeated(platform, worker, version, "pexec", "upload", data)
    await client.close()
    await platform.queue_is_empty(version)


async def test_a_body_that_is_too_large(platform: Platform) -> None:
    version = await platform.create_version()
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    await platform.call("POST", path, {"deploymentSpecifications": [{}], "maxBodyBytes": 100_000})

    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 10_000

    async with peer_worker(platform, version) as worker:
        first: asyncio.Task[Answer] = asyncio.create_task(
            call(platform, "POST", version.pexec, chunks(100), Idempotency_Key="large")
        )
        work = await worker.pull()
        with contextlib.suppress(Exception):
            await work.get()
        assert (await first).status == 413
        await work.ack()
        await repeated(platform, worker, version, "pexec", "large", chunks(9))
    await platform.queue_is_empty(version)


async def lose(platform: Platform, version: Version) -> None:
    """Lose all requests of a version, as a broker does whose disk fails."""
    client = await platform.broker_client()
    try:
        reply = await client.request(f"$JS.API.STREAM.PURGE.rq_local_{version.id}", b"", timeout=5)
        assert json.loads(reply.data)["success"]
    finally:
        await client.close()


@ROUTES
async def test_nothing_is_promised_for_a_request_that_is_nowhere(platform: Platform, route: str) -> None:
    version = await platform.deployed_version()
    path = version.exec if route == "exec" else version.pexec
    headers: dict[str, Any] = {"Idempotency_Key": "nowhere", "NVCF_POLL_SECONDS": "1"}
    assert (await call(platform, "POST", path, body_of(route), **headers)).status == 202
    await lose(platform, version)
    again = await call(platform, "POST", path, body_of(route), **headers)
    assert (again.status, again.headers["retry-after"]) == (503, "1")
    assert b"not queued yet" in again.body


@pytest.mark.slow
async def test_calls_with_a_short_poll_time_free_the_key_of_a_lost_request(platform: Platform) -> None:
    """No single one of them waits as long as a request may be on its way."""
    version = await platform.deployed_version()
    headers: dict[str, Any] = {"Idempotency_Key": "short", "NVCF_POLL_SECONDS": "1"}
    first = await call(platform, "POST", version.pexec, b"x", **headers)
    assert first.status == 202
    await lose(platform, version)
    async with asyncio.timeout(SETTLED_SECONDS + AT_ONCE):
        while True:
            again = await call(platform, "POST", version.pexec, b"x", **headers)
            if again.status == 202 and again.headers["nvcf-reqid"] != first.headers["nvcf-reqid"]:
                break
    async with peer_worker(platform, version) as worker:
        await (await worker.pull()).answer(b"run")
        assert (await call(platform, "POST", version.pexec, b"x", **headers)).body == b"run"
    await platform.queue_is_empty(version)
