"""pexec as callers and workers see it (protocol.md, sections 2 to 4), against a hand-driven peer worker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from nvcf_proto.pb import nvcf_pb2
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version
from tests.support.platform.pexec import call, pulled

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_message_carries_the_request(platform: Platform) -> None:
    version = await platform.deployed_version(inferenceUrl="/v1/run?mode=a")
    async with peer_worker(platform, version) as worker:
        before = time.time()
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        headers = {"X_Custom": "yes", "Content_Type": "text/plain", "Traceparent": trace}
        task, work = await pulled(platform, worker, version.pexec, **headers)
        request = work.request
        assert work.message.subject == f"rq.local.{version.id}.{request.requestId}"
        assert request.ncaId == "account-one"
        assert request.requestMethod == "POST"
        assert request.requestPath == "/v1/run?mode=a"
        assert request.requestBody == b"hello"
        assert before - 1 < request.requestTime.ToNanoseconds() / 1e9 < time.time() + 1
        assert work.headers["x-custom"] == "yes"
        assert work.headers["content-type"] == "text/plain"
        assert work.headers["nvcf-poll-seconds"] == "60"
        assert "authorization" not in work.headers
        assert not work.connection.HasField("requestAuthorizationToken")
        assert work.message.headers is not None
        assert work.message.headers["traceparent"] == trace
        assert request.maxDirectResponseSizeBytes == 5 * 1024 * 1024
        assert (await work.answer(b"done", "201 Created", "X-Mine: 1", "Connection: X-Hop", "X-Hop: 1"))[
            0
        ] == 200
        answer = await task
        assert (answer.status, answer.body) == (201, b"done")
        assert answer.headers["nvcf-reqid"] == request.requestId
        assert answer.headers["nvcf-status"] == "fulfilled"
        assert "nvcf-reqid" in answer.headers["access-control-expose-headers"]
        assert answer.headers["x-mine"] == "1"
        assert "x-hop" not in answer.headers
    await platform.queue_is_empty(version)


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("202 Accepted", 202, "in-progress"),
        ("302 Found", 302, "fulfilled"),
        ("404 Not Found", 404, "errored"),
    ],
)
async def test_status_header(platform: Platform, line: str, status: int, said: str) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(_no_redirect(platform, version))
        work = await worker.pull()
        await work.answer(b"", line, "Location: http://elsewhere/x")
        got_status, got_said = await task
        assert (got_status, got_said) == (status, said)


async def _no_redirect(platform: Platform, version: Version) -> tuple[int, str]:
    url = platform.gateway.url + version.pexec
    async with platform.session.post(
        url, headers=platform.authorization(), allow_redirects=False
    ) as response:
        return response.status, response.headers["nvcf-status"]


async def test_inline_reply(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(platform, worker, version.pexec)
        reply = nvcf_pb2.InlineResponse(
            body=b"small",
            headers=[nvcf_pb2.StringKV(key="Content-Type", value="text/plain")],
            httpStatusCode=200,
            endOfResponse=True,
        )
        acknowledgement = await work.inline(reply)
        assert acknowledgement.data == b""
        assert "Nvcf-Reply-Status" not in (acknowledgement.headers or {})
        answer = await task
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"small", "text/plain")
        # The request has ended: neither reply address takes another response.
        assert ((await work.inline(reply)).headers or {})["Nvcf-Reply-Status"] == "410"
        assert (await work.post(b"HTTP/1.1 200 OK\r\n\r\n"))[0] == 401
        await work.ack()


async def test_malformed_inline_reply_leaves_the_request_open(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(platform, worker, version.pexec)
        bad_header = nvcf_pb2.InlineResponse(
            headers=[nvcf_pb2.StringKV(key="X", value="a\r\nb: c")], endOfResponse=True
        )
        for reply in (b"\xff\xff\xff", bad_header, nvcf_pb2.InlineResponse(body=b"x")):
            assert ((await work.inline(reply)).headers or {})["Nvcf-Reply-Status"] == "400"
        await work.answer(b"good")
        assert (await task).body == b"good"


async def test_answer_is_streamed_as_it_comes(platform: Platform) -> None:
    version = await platform.deployed_version()
    turn = asyncio.Queue[bytes | None]()

    async def parts() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        while (part := await turn.get()) is not None:
            yield part

    async with peer_worker(platform, version) as worker:
        url = platform.gateway.url + version.pexec
        request = platform.session.post(url, data=b"x", headers=platform.authorization())
        opening = asyncio.create_task(request.__aenter__())
        work = await worker.pull()
        posting = asyncio.create_task(work.post(parts()))
        response = await opening
        assert response.headers["content-type"] == "text/event-stream"
        for index in range(5):
            turn.put_nowait(b"item %d" % index)
            assert await response.content.readany() == b"item %d" % index
        turn.put_nowait(None)
        assert await response.content.read() == b""
        assert (await posting)[0] == 200
        await work.ack()
        response.release()


async def test_time_out_is_504_without_a_body(platform: Platform) -> None:
    version = await platform.deployed_version(keep_queued=False)
    async with peer_worker(platform, version) as worker:
        cancels = await worker.client.subscribe(f"nvcf.cancel.{version.id}")
        await worker.client.flush()
        task, work = await pulled(platform, worker, version.pexec, NVCF_POLL_SECONDS="0")
        answer = await task
        assert (answer.status, answer.body) == (504, b"")
        assert (await cancels.next_msg(timeout=5)).data.decode() == work.request.requestId
        assert (await work.post(b"HTTP/1.1 200 OK\r\n\r\n"))[0] == 401
    await platform.queue_is_empty(version)


async def test_caller_that_leaves_cancels_the_request(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        cancels = await worker.client.subscribe(f"nvcf.cancel.{version.id}")
        await worker.client.flush()
        task, work = await pulled(platform, worker, version.pexec)
        task.cancel()
        assert (await cancels.next_msg(timeout=5)).data.decode() == work.request.requestId
    await platform.queue_is_empty(version)


async def test_caller_that_leaves_at_once_is_never_missed(platform: Platform) -> None:
    """The disconnect can arrive together with the broker's acknowledgement of the request."""
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        cancels = await worker.client.subscribe(f"nvcf.cancel.{version.id}")
        await worker.client.flush()
        for _ in range(30):
            task, work = await pulled(platform, worker, version.pexec)
            task.cancel()
            assert (await cancels.next_msg(timeout=5)).data.decode() == work.request.requestId


async def test_head_request_has_no_body(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(
            platform, worker, "/any", data=None, method="HEAD", function_id=version.function_id
        )
        await work.answer(b"", "200 OK", "Content-Length: 11")
        answer = await task
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, "11", b"")


async def test_pass_through_keeps_the_request_as_it_is(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(
            platform, worker, "/a%2Fb/c?x=1&y=%20", method="PATCH", function_id=version.function_id,
            function_version_id=version.id,
        )  # fmt: skip
        assert work.request.requestMethod == "PATCH"
        assert work.request.requestPath == "/a%2Fb/c?x=1&y=%20"
        assert work.headers["nvcf-feature-disable-worker-compatibility"] == "true"
        assert work.headers["function-id"] == version.function_id
        assert work.request.largeResponseUrl == ""
        await work.answer(b"through", "200 OK", "Set-Cookie: a=1", "Set-Cookie: b=2")
        answer = await task
        assert answer.body == b"through"
        assert answer.headers.getall("set-cookie") == ["a=1", "b=2"]
        assert answer.headers["nvcf-status"] == "fulfilled"
        assert answer.headers["access-control-expose-headers"] == "nvcf-reqid"


@pytest.mark.parametrize("with_version", [True, False])
async def test_pass_through_by_host(platform: Platform, with_version: bool) -> None:
    version = await platform.deployed_version()
    label = f"{version.id}.{version.function_id}" if with_version else version.function_id
    async with peer_worker(platform, version) as worker:
        task, work = await pulled(
            platform, worker, "/v2/nvcf/functions", method="OPTIONS", data=None, Host=f"{label}.example.test"
        )
        assert (work.request.requestMethod, work.request.requestPath) == ("OPTIONS", "/v2/nvcf/functions")
        await work.answer(b"", "204 No Content", "Access-Control-Allow-Origin: http://mine")
        answer = await task
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "http://mine")


async def test_expect_100_continue(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        url = platform.gateway.url + version.pexec
        request = platform.session.post(
            url, data=b"late body", headers=platform.authorization(), expect100=True
        )
        opening = asyncio.create_task(request.__aenter__())
        work = await worker.pull()
        assert work.request.requestBody == b"late body"
        await work.answer(b"after continue")
        response = await opening
        assert await response.read() == b"after continue"


async def test_queue_full_is_429(platform: Platform) -> None:
    version = await platform.deployed_version()
    client = await platform.broker_client()
    try:
        answer = await client.request(f"$JS.API.STREAM.INFO.rq_local_{version.id}", b"", timeout=5)
        config = json.loads(answer.data)["config"]
        assert config["retention"] == "workqueue"
        assert config["storage"] == "file"
        assert config["discard"] == "new"
        assert config["discard_new_per_subject"] is True
        assert config["max_msgs"] == 100_000
        assert config["max_msgs_per_subject"] == 1
        assert config["max_msg_size"] == 6 * 1024 * 1024
        assert config["duplicate_window"] == 5_000_000_000
        assert config["allow_direct"] is True
        config["max_msgs"] = 1
        await client.request(
            f"$JS.API.STREAM.UPDATE.rq_local_{version.id}", json.dumps(config).encode(), timeout=5
        )
        first = asyncio.create_task(call(platform, version.pexec))
        async with peer_worker(platform, version) as worker:
            work = await worker.pull()
            second = await call(platform, version.pexec)
            assert (second.status, second.headers["content-type"]) == (429, "application/problem+json")
            assert second.headers["retry-after"]
            await work.answer()
            assert (await first).status == 200
    finally:
        await client.close()
