"""[ext] One request, one response: each call with its key gets the same, however it was delivered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from nvcf_proto.pb import nvcf_pb2
from tests.contract.gateway.test_idempotency import fallback_reply
from tests.contract.gateway.test_polling import EXEC, PEXEC, call, progress
from tests.support.peers.worker import ATTACH, Work, peer_worker
from tests.support.platform.gateways import Platform, Version, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")


def by_poll(work: Work, question: bytes) -> Work:
    """The same work, answered by the reply address of a poll."""
    request = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(question)
    return Work(work.message, request, work.session, work.client)


async def by_fallback(work: Work, version: Version) -> Work:
    """The same work, answered by another reply address than its own."""
    answer = await fallback_reply(work, version.id)
    request = nvcf_pb2.WorkerInvokeFunctionRequest(requestId=work.request.requestId)
    request.statelessConfig.CopyFrom(nvcf_pb2.StatelessConfig.FromString(answer.data))
    return Work(work.message, request, work.session, work.client)


async def test_an_answer_given_to_a_poll_is_there_for_its_key(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(call(platform, "POST", version.pexec, b"x", Idempotency_Key="p"))
        work = await worker.pull()
        await work.post(b"HTTP/1.1 202 Accepted\r\nNVCF-PERCENT-COMPLETE: 10\r\n\r\n")
        request_id = (await first).headers["nvcf-reqid"]
        questions = await worker.client.subscribe(f"rq_polling.{version.id}.{request_id}")
        await worker.client.flush()
        poll = asyncio.create_task(call(platform, "GET", PEXEC + request_id))
        question = await questions.next_msg(timeout=10)
        await question.respond(b"")
        await by_poll(work, question.data).post(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nonce")
        await work.ack()
        assert (await poll).body == b"once"
        await questions.unsubscribe()
    again = await call(platform, "POST", version.pexec, b"x", Idempotency_Key="p")
    assert (again.status, again.body, again.headers["nvcf-reqid"]) == (200, b"once", request_id)


async def test_an_answer_reaches_a_poll_again_when_the_first_was_cut_off(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        work = await progress(platform, worker, version)
        path = PEXEC + work.request.requestId
        questions = await worker.client.subscribe(f"rq_polling.{version.id}.{work.request.requestId}")
        await worker.client.flush()
        started, rest = asyncio.Event(), asyncio.Event()

        async def answer() -> AsyncIterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\n\r\nfirst half, "
            await rest.wait()
            yield b"second half"

        async def cut_off() -> None:
            url, headers = platform.gateway.url + path, platform.authorization()
            async with platform.session.get(url, headers=headers) as response:
                assert (await response.content.readany()).startswith(b"first")
                started.set()
                await asyncio.sleep(60)

        poll = asyncio.create_task(cut_off())
        question = await questions.next_msg(timeout=10)
        await question.respond(b"")
        delivery = asyncio.create_task(by_poll(work, question.data).post(answer()))
        await started.wait()
        poll.cancel()
        await asyncio.wait({poll})
        rest.set()
        status, _ = await delivery
        await questions.unsubscribe()
        if status != 200:
            # The caller was noticed to be gone at once: the worker finds another address.
            await (await by_fallback(work, version)).post(b"HTTP/1.1 200 OK\r\n\r\nfirst half, second half")
        await work.ack()
        found = await call(platform, "GET", path)
        assert (found.status, found.body) == (200, b"first half, second half")


async def test_a_poll_that_breaks_off_is_no_answer(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        work = await progress(platform, worker, version)
        questions = await worker.client.subscribe(f"rq_polling.{version.id}.{work.request.requestId}")
        await worker.client.flush()
        poll = asyncio.create_task(call(platform, "GET", EXEC + work.request.requestId))
        question = await questions.next_msg(timeout=10)
        await question.respond(b"")
        target = by_poll(work, question.data).connection
        reader, writer = await asyncio.open_connection(
            *platform.gateway.url.removeprefix("http://").split(":")
        )
        writer.write(
            f"POST {ATTACH} HTTP/1.1\r\nHost: a\r\n"
            f"Authorization: Bearer {target.responseAuthorizationToken}\r\n"
            "Content-Type: application/octet-stream+h1\r\nContent-Length: 1000\r\n\r\n"
            'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"half'.encode()
        )
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.transport.abort()
        del reader
        assert (await poll).status == 502
        await questions.unsubscribe()
        # It is still known, and the worker may come back with it.
        still = await call(platform, "GET", EXEC + work.request.requestId, NVCF_POLL_SECONDS="1")
        assert still.status == 202
        await work.ack()


async def test_the_first_of_two_executions_counts(platform: Platform) -> None:
    """A request was delivered twice: the second answer does not replace the first."""
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(call(platform, "POST", version.pexec, b"x", Idempotency_Key="t"))
        work = await worker.pull()
        fallback = await by_fallback(work, version)
        assert (await fallback.post(b"HTTP/1.1 200 OK\r\n\r\none"))[0] == 200
        reply = nvcf_pb2.InlineResponse(body=b"two", httpStatusCode=200, endOfResponse=True)
        # Delivered, so that its worker is done with it.
        assert "Nvcf-Reply-Status" not in ((await work.inline(reply)).headers or {})
        waiting = await first
        assert waiting.status == 202
        await work.ack()
        for _ in range(2):
            again = await call(platform, "POST", version.pexec, b"x", Idempotency_Key="t")
            assert (again.status, again.body) == (200, b"one")


async def test_a_streamed_second_answer_is_not_shown(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(call(platform, "POST", version.pexec, b"x", Idempotency_Key="s"))
        work = await worker.pull()
        fallback = await by_fallback(work, version)
        assert (await fallback.post(b"HTTP/1.1 200 OK\r\n\r\none"))[0] == 200
        await work.post(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo")
        await work.ack()
        with contextlib.suppress(aiohttp.ClientError):
            assert (await first).body != b"two", "the whole of an answer that will not be given again"
        again = await call(platform, "POST", version.pexec, b"x", Idempotency_Key="s")
        assert (again.status, again.body) == (200, b"one")


async def test_a_worker_that_breaks_off_does_not_free_the_key(platform: Platform) -> None:
    """The queue delivers the request again, and that answer is the one that the key stands for."""
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(call(platform, "POST", version.pexec, b"x", Idempotency_Key="b"))
        work = await worker.pull()
        with contextlib.suppress(aiohttp.ClientError):
            # Longer than it says, which a gateway cannot pass on.
            await work.post(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n12345")
        with contextlib.suppress(aiohttp.ClientError):
            assert (await first).status == 502
        again = asyncio.create_task(call(platform, "POST", version.pexec, b"x", Idempotency_Key="b"))
        await work.message.nak()
        second = await worker.pull()
        assert second.request.requestId == work.request.requestId
        fallback = await by_fallback(second, version)
        assert (await fallback.post(b"HTTP/1.1 200 OK\r\n\r\nwhole"))[0] == 200
        await second.ack()
        assert (await again).body == b"whole"


async def test_a_body_lost_with_its_gateway_is_sent_again(platform: Platform) -> None:
    """Its request is given up, so that the key is free for the caller, who still has the body."""
    version = await platform.deployed_version()
    dying = await platform.start_gateway()
    data = b"y" * 100_000
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(
            call(platform, "POST", version.pexec, data, gateway=dying, Idempotency_Key="body")
        )
        work = await worker.pull()
        dying.child.kill()
        await dying.child.wait()
        await asyncio.wait({first})
        fallback = await by_fallback(work, version)
        assert not fallback.connection.requestAuthorizationToken
        # What a worker says that has not got the body.
        assert (await fallback.post(b"HTTP/1.1 502 Bad Gateway\r\n\r\n"))[0] == 200
        await work.ack()
        freed = await call(platform, "POST", version.pexec, data, Idempotency_Key="body")
        assert freed.status == 503
        again = asyncio.create_task(call(platform, "POST", version.pexec, data, Idempotency_Key="body"))
        second = await worker.pull()
        _, _, rest = await second.get()
        assert second.request.requestBody + rest == data
        await second.answer(b"got it")
        assert (await again).body == b"got it"


async def test_progress_that_cannot_be_recorded_is_no_internal_error(tmp_path: Path) -> None:
    """A 202 is only said once a poll can find the request; without the broker's stream it cannot."""
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version()
        client = await platform.broker_client()
        try:
            async with peer_worker(platform, version) as worker:
                first = asyncio.create_task(call(platform, "POST", version.pexec, b"x"))
                work = await worker.pull()
                await client.request("$JS.API.STREAM.DELETE.requestToFunctionVersion_local", b"", timeout=5)
                await work.inline(nvcf_pb2.InlineResponse(httpStatusCode=202, endOfResponse=True))
                answer = await first
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        finally:
            await client.close()
