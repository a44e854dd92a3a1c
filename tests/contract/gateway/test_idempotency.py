"""[ext] Idempotency-Key, and the fallback gateway of a worker whose gateway is gone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from nvcf_proto.pb import nvcf_pb2
from tests.contract.gateway.test_polling import PEXEC, call
from tests.support.peers.worker import Work, peer_worker
from tests.support.platform.gateways import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_repeated_post_follows_the_first(platform: Platform) -> None:
    version = await platform.deployed_version()
    other = await platform.start_gateway()
    async with peer_worker(platform, version) as worker:
        calls = [
            asyncio.create_task(
                call(platform, "POST", version.pexec, b"once", gateway=gateway, Idempotency_Key="k1")
            )
            for gateway in (platform.gateway, other, platform.gateway)
        ]
        work = await worker.pull()
        await work.answer(b"the one answer", "200 OK", "X-Mine: 1")
        answers = await asyncio.gather(*calls)
        assert [(answer.status, answer.body) for answer in answers] == [(200, b"the one answer")] * 3
        assert {answer.headers["nvcf-reqid"] for answer in answers} == {work.request.requestId}
        # Much later the same key gives the same answer, without a worker.
        again = await call(platform, "POST", version.pexec, b"once", Idempotency_Key="k1")
        assert (again.body, again.headers["x-mine"]) == (b"the one answer", "1")
        fresh = asyncio.create_task(call(platform, "POST", version.pexec, b"once", Idempotency_Key="k2"))
        second = await worker.pull()
        assert second.request.requestId != work.request.requestId
        reply = nvcf_pb2.InlineResponse(body=b"inline", httpStatusCode=200, endOfResponse=True)
        assert "Nvcf-Reply-Status" not in ((await second.inline(reply)).headers or {})
        await second.ack()
        assert (await fresh).body == b"inline"
        repeated = await call(platform, "POST", version.pexec, b"once", Idempotency_Key="k2")
        assert repeated.body == b"inline"
    await platform.queue_is_empty(version)


async def test_a_key_is_for_one_request(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(call(platform, "POST", version.pexec, b"a", Idempotency_Key="k"))
        work = await worker.pull()
        other = await call(platform, "POST", version.pexec, b"b", Idempotency_Key="k")
        assert (other.status, other.headers["content-type"]) == (422, "application/problem+json")
        await work.answer()
        assert (await first).status == 200
    for bad in ("", "x" * 256, "a\u00e4"):
        assert (await call(platform, "POST", version.pexec, b"a", Idempotency_Key=bad)).status == 400


async def test_a_caller_that_left_finds_its_answer(platform: Platform) -> None:
    version = await platform.deployed_version()
    data = b"x" * 100_000
    async with peer_worker(platform, version) as worker:
        cancels = await worker.client.subscribe(f"nvcf.cancel.{version.id}")
        first = asyncio.create_task(call(platform, "POST", version.pexec, data, Idempotency_Key="left"))
        work = await worker.pull()
        _, _, rest = await work.get()
        assert work.request.requestBody + rest == data
        first.cancel()
        await asyncio.wait({first})
        async with asyncio.timeout(10):
            while (await work.post(b"HTTP/1.1 200 OK\r\n\r\nfound"))[0] != 200:
                await asyncio.sleep(0.02)
        await work.ack()
        again = await call(platform, "POST", version.pexec, data, Idempotency_Key="left")
        assert (again.status, again.body) == (200, b"found")
        assert again.headers["nvcf-reqid"] == work.request.requestId
        assert cancels.pending_msgs == 0


async def test_exec_follows_too(platform: Platform) -> None:
    version = await platform.deployed_version()
    body = json.dumps({"requestBody": {"a": 1}}).encode()
    async with peer_worker(platform, version) as worker:
        calls = [
            asyncio.create_task(call(platform, "POST", version.exec, body, Idempotency_Key="e"))
            for _ in range(2)
        ]
        work = await worker.pull()
        # Only so does the worker know that somebody may fetch the response later.
        sent = {pair.key.lower(): pair.value for pair in work.request.requestHeaders}
        assert sent["idempotency-key"] == "e"
        await work.answer(b"[1]", "200 OK", "Content-Type: application/json")
        answers = await asyncio.gather(*calls)
        assert [answer.json["response"] for answer in answers] == [[1], [1]]


async def test_a_call_that_came_to_nothing_frees_its_key(platform: Platform) -> None:
    version = await platform.deployed_version()
    client = await platform.broker_client()
    try:
        info = await client.request(f"$JS.API.STREAM.INFO.rq_local_{version.id}", b"", timeout=5)
        config = {**json.loads(info.data)["config"], "max_msgs": 1}
        update = f"$JS.API.STREAM.UPDATE.rq_local_{version.id}"
        await client.request(update, json.dumps(config).encode(), timeout=5)
        async with peer_worker(platform, version) as worker:
            first = asyncio.create_task(call(platform, "POST", version.pexec, b"1"))
            work = await worker.pull()
            full = await call(platform, "POST", version.pexec, b"2", Idempotency_Key="n")
            assert full.status == 429
            await work.answer()
            await first
            await platform.queue_is_empty(version)
            retried = asyncio.create_task(call(platform, "POST", version.pexec, b"2", Idempotency_Key="n"))
            await (await worker.pull()).answer(b"now")
            assert (await retried).body == b"now"
    finally:
        await client.close()


async def fallback_reply(work: Work, version_id: str) -> Any:
    return await work.client.request(f"nvcf.attach.{version_id}", work.request.requestId.encode(), timeout=10)


async def test_a_worker_whose_gateway_died_finds_another_way(platform: Platform) -> None:
    version = await platform.deployed_version()
    dying = await platform.start_gateway()
    data = b"y" * 100_000
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(
            call(platform, "POST", version.pexec, data, gateway=dying, Idempotency_Key="died")
        )
        work = await worker.pull()
        await work.get()
        dying.child.kill()
        await dying.child.wait()
        await asyncio.wait({first})
        answer = await fallback_reply(work, version.id)
        config = nvcf_pb2.StatelessConfig.FromString(answer.data)
        connection = config.connectionConfigs[0].http1Config
        assert connection.targetURI in {gateway.url for gateway in platform.gateways} - {dying.url}
        work.request.statelessConfig.CopyFrom(config)
        assert (await work.post(b"HTTP/1.1 200 OK\r\n\r\nsaved"))[0] == 200
        await work.ack()
        again = await call(platform, "POST", version.pexec, data, Idempotency_Key="died")
        assert (again.status, again.body) == (200, b"saved")


async def test_a_kept_request_is_found_with_its_body(platform: Platform) -> None:
    version = await platform.deployed_version()
    dying = await platform.start_gateway()
    data = b"z" * 100_000
    kept = await call(platform, "POST", version.pexec, data, gateway=dying, NVCF_POLL_SECONDS="1")
    assert kept.status == 202
    dying.child.kill()
    await dying.child.wait()
    async with peer_worker(platform, version) as worker:
        work = await worker.pull()
        answer = await fallback_reply(work, version.id)
        work.request.statelessConfig.CopyFrom(nvcf_pb2.StatelessConfig.FromString(answer.data))
        _, _, rest = await work.get()
        assert work.request.requestBody + rest == data
        assert answer.headers["Nvcf-Reply-Subject"].startswith("nvcf.reply.")
        await work.answer(b"late")
        result = await call(platform, "GET", PEXEC + kept.headers["nvcf-reqid"])
        assert result.body == b"late"


async def test_what_is_not_queued_has_no_fallback(platform: Platform) -> None:
    version, foreign = await platform.deployed_version(), await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(call(platform, "POST", version.pexec, b"x"))
        work = await worker.pull()
        await work.answer()
        await task
        await platform.queue_is_empty(version)
        assert (await fallback_reply(work, version.id)).headers["Nvcf-Reply-Status"] == "410"
        answer = await work.client.request(f"nvcf.attach.{version.id}", b"nonsense", timeout=10)
        assert (answer.headers or {})["Nvcf-Reply-Status"] == "410"
        errors: list[str] = []

        async def collect(error: Exception) -> None:
            errors.append(str(error))

        work.client._error_cb = collect
        with pytest.raises(Exception, match="timeout"):
            await work.client.request(f"nvcf.attach.{foreign.id}", b"x", timeout=1)
        assert "ermissions" in errors[0]
