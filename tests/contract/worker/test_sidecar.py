"""A user's HTTP server behind the worker, byte for byte: what it sees and what its callers get."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator

import pytest

from nvcf_broker.process import free_port
from nvcf_worker.run.sidecar.upstream import Upstream
from tests.contract.worker.conftest import StartWorker
from tests.support.http.user_server import Script, Seen, UserServer, answering, user_server
from tests.support.peers.calls import BrokenResponse
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually


@contextlib.asynccontextmanager
async def served(script: Script, start_worker: StartWorker) -> AsyncIterator[UserServer]:
    """A worker in front of a server."""
    async with user_server(script) as server:
        upstream = Upstream("127.0.0.1", server.port)
        worker = start_worker(upstream.handle)
        await worker.ready()
        try:
            yield server
        finally:
            await worker.stop()
            await upstream.close()


async def test_the_server_sees_the_callers_request(gateway: PeerGateway, start_worker: StartWorker) -> None:
    async with served(answering("HTTP/1.1 201 Made", b"done"), start_worker) as server:
        headers = {
            "Host": "caller.example",
            "Content-Type": "text/x-own",
            "X-Own": "a",
            "Connection": "X-Hop",
            "X-Hop": "1",
            "Expect": "100-continue",
            "NVCF-FUNCTION-ID": "forged",
        }
        call = await gateway.invoke(b"body", method="PATCH", path="/a%2Fb/%e4?x=1&x=%20", headers=headers)
        answer = await call.answer()
    assert (answer.status, answer.body) == (201, b"done")
    seen = server.seen[0]
    assert seen.line == "PATCH /a%2Fb/%e4?x=1&x=%20 HTTP/1.1"
    assert seen.body == b"body"
    assert seen.all("Host") == [f"127.0.0.1:{server.port}"]
    assert seen.all("X-Forwarded-Host") == ["caller.example"]
    assert seen.all("Content-Type") == ["text/x-own"]
    assert seen.all("X-Own") == ["a"]
    assert seen.all("NVCF-REQID") == [call.request_id]
    assert seen.all("NVCF-FUNCTION-ID") == [gateway.function_id]
    assert seen.all("NVCF-NCAID") == ["account-1"]
    names = {name.lower() for name, _ in seen.headers}
    assert not names & {"x-hop", "connection", "expect", "user-agent", "accept", "accept-encoding"}


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "PROPFIND"])
async def test_methods_without_a_body(gateway: PeerGateway, start_worker: StartWorker, method: str) -> None:
    async with served(answering("HTTP/1.1 200 OK", b"x"), start_worker) as server:
        assert (await (await gateway.invoke(method=method)).answer()).body == b"x"
    assert server.seen[0].line == f"{method} / HTTP/1.1"
    assert server.seen[0].body == b""
    assert not server.seen[0].all("Transfer-Encoding")


async def test_head_keeps_the_length_of_what_get_would_send(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def script(seen: Seen) -> None:
        await seen.send(b'HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nETag: "a"\r\n\r\n')

    async with served(script, start_worker):
        for limit in (262_144, None):  # inline and by request-attach
            answer = await (await gateway.invoke(method="HEAD", reply_max_bytes=limit)).answer()
            assert answer.headers["content-length"] == "1234"
            assert (answer.headers["etag"], answer.body) == ('"a"', b"")


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body(gateway: PeerGateway, start_worker: StartWorker, status: int) -> None:
    async def script(seen: Seen) -> None:
        await seen.send(f"HTTP/1.1 {status} X\r\nContent-Length: 7\r\nX-A: 1\r\n\r\n".encode())

    async with served(script, start_worker):
        for limit in (262_144, None):
            answer = await (await gateway.invoke(method="GET", reply_max_bytes=limit)).answer()
            assert (answer.status, answer.body, answer.headers["x-a"]) == (status, b"", "1")
            assert "content-length" not in answer.headers


async def test_redirects_compression_and_interim_answers_pass(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def script(seen: Seen) -> None:
        await seen.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n")
        await seen.send(
            b"HTTP/1.1 307 Moved\r\nLocation: /other\r\nContent-Encoding: gzip\r\n"
            b"Content-Length: 4\r\n\r\n\x1f\x8b!!"
        )

    async with served(script, start_worker) as server:
        answer = await (await gateway.invoke(b"x")).answer()
    assert (answer.status, answer.headers["location"]) == (307, "/other")
    assert (answer.headers["content-encoding"], answer.body) == ("gzip", b"\x1f\x8b!!")
    assert len(server.seen) == 1


async def test_a_large_body_keeps_its_length_both_ways(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    pieces = [bytes([number]) * 100_000 for number in range(20)]

    async def rest() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def script(seen: Seen) -> None:
        await seen.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(seen.body)}\r\n\r\n".encode() + seen.body)

    async with served(script, start_worker) as server:
        call = await gateway.invoke(b"i" * 32768, rest=rest(), headers={"Content-Length": "2032768"})
        answer = await call.answer()
    assert server.seen[0].all("Content-Length") == ["2032768"]
    assert answer.headers["content-length"] == "2032768"
    whole = b"i" * 32768 + b"".join(pieces)
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(whole).digest()


async def test_chunks_flow_both_ways_while_both_sides_are_open(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    """Each chunk of the caller gets its response before the next one is sent: nothing is buffered."""
    asked: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def rest() -> AsyncIterator[bytes]:
        yield b""  # the gateway's head at once
        while (piece := await asked.get()) is not None:
            yield piece

    async def script(seen: Seen) -> None:
        assert seen.all("Transfer-Encoding") == ["chunked"]
        await seen.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        while chunk := await seen.chunk():
            await seen.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        await seen.send(b"0\r\n\r\n")

    async with served(script, start_worker):
        call = await gateway.invoke(b"", rest=rest())
        async with asyncio.timeout(20):
            status, headers = await call.head  # before any chunk
            assert (status, headers["content-type"]) == (200, "text/event-stream")
            for number in range(20):
                await asked.put(b"piece %d" % number)
                chunk = await call.chunks.get()
                while chunk == b"":
                    chunk = await call.chunks.get()
                assert chunk == b"piece %d" % number
            await asked.put(None)
            assert [item async for item in call.iterate()] == []


async def test_a_slow_caller_slows_the_server(gateway: PeerGateway, start_worker: StartWorker) -> None:
    sent = 0

    async def script(seen: Seen) -> None:
        nonlocal sent
        await seen.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1000):
            await seen.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536
        await seen.send(b"0\r\n\r\n")

    async with served(script, start_worker):
        call = await gateway.invoke()
        await asyncio.wait_for(asyncio.shield(call.head), 20)
        last = -1
        while last != sent:  # until nothing moves any more
            last = sent
            await asyncio.sleep(0.3)
        assert sent < 40_000_000
        total = 0
        async for chunk in call.iterate():
            total += len(chunk)
        assert total == 65_536_000


async def test_connections_are_kept_and_a_stale_one_does_no_harm(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    requests = 0

    async def script(seen: Seen) -> None:
        nonlocal requests
        requests += 1
        if requests == 4:  # an idle time-out that meets the next request
            seen.writer.transport.abort()
            return
        await answering("HTTP/1.1 200 OK", b"%d" % requests)(seen)

    async with served(script, start_worker) as server:
        for _ in range(3):
            assert (await (await gateway.invoke(b"x")).answer()).status == 200
        assert server.connections == 1
        assert (await (await gateway.invoke(b"y")).answer()).body == b"5"
        assert server.seen[-1].body == b"y"
        assert server.connections == 2


@pytest.mark.parametrize(
    ("script", "source", "status"),
    [
        (answering("nonsense"), "inference-service", 502),
        (
            answering("HTTP/1.1 200 OK\n" + "\n".join(f"X-{n}: 1" for n in range(80))),
            "inference-service",
            502,
        ),
    ],
)
async def test_what_is_no_answer_is_told_in_words(
    gateway: PeerGateway, start_worker: StartWorker, script: Script, source: str, status: int
) -> None:
    async with served(script, start_worker):
        answer = await (await gateway.invoke(b"x")).answer()
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["type"].startswith(f"urn:{source}:problem-details:")


async def test_errors_become_problem_documents_where_callers_expect_them(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    """Compatibility mode collects an error, whether or not the server has sent its length."""

    async def script(seen: Seen) -> None:
        body = b'{"error": "no such model"}'
        if "chunked" in seen.line:
            head = b"HTTP/1.1 404 X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            await seen.send(head)
            await seen.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            await answering("HTTP/1.1 404 X\nContent-Type: application/json", body)(seen)

    plain = {"nvcf-feature-disable-worker-compatibility": "true"}
    async with served(script, start_worker):
        for path in ("/whole", "/chunked"):
            answer = await (await gateway.invoke(path=path)).answer()
            assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
            assert answer.json()["detail"] == "no such model"
            answer = await (await gateway.invoke(path=path, headers=plain)).answer()
            assert (answer.status, answer.json()) == (404, {"error": "no such model"})


@pytest.mark.parametrize("chunked", [False, True])
async def test_large_and_encoded_errors_become_problem_documents_too(
    gateway: PeerGateway, start_worker: StartWorker, chunked: bool
) -> None:
    """Without their text; the connection of one that goes on for ever is closed."""
    left = asyncio.Event()

    async def script(seen: Seen) -> None:
        if "encoded" in seen.line:
            await answering("HTTP/1.1 500 X\nContent-Encoding: gzip\nX-Own: a", b"\x1f\x8b")(seen)
            return
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {2**40}"
        await seen.send(f"HTTP/1.1 500 X\r\nContent-Type: text/html\r\n{length}\r\n\r\n".encode())
        piece = b"<p>" * 1000
        with contextlib.suppress(ConnectionError):
            while True:
                await seen.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        left.set()

    async with served(script, start_worker):
        for path in ("/large", "/encoded"):
            answer = await (await gateway.invoke(path=path)).answer()
            assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")
            assert answer.json()["title"] == "Internal Server Error"
            detail = answer.json().get("detail", "")
            assert ("cannot be shown" in detail) is (path == "/encoded"), "it says why there is none"
            assert "content-encoding" not in answer.headers
        assert answer.headers["x-own"] == "a"
        async with asyncio.timeout(10):
            await left.wait()


async def test_a_request_whose_server_hangs_up_is_delivered_again(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def script(seen: Seen) -> None:
        if len(server.seen) < 3 or "never" in seen.line:
            seen.writer.transport.abort()
        else:
            await answering("HTTP/1.1 200 OK\nConnection: close", b"%d" % len(server.seen))(seen)

    async with served(script, start_worker) as server:
        assert (await (await gateway.invoke(b"x")).answer()).body == b"3"
        answer = await (await gateway.invoke(b"x", path="/never")).answer()
        assert (answer.status, answer.json()["type"]) == (
            502,
            "urn:inference-connection:problem-details:bad-gateway",
        )
        assert len(server.seen) == 3 + 5, "all attempts that the queue allows"


async def test_a_body_that_breaks_off_never_looks_complete(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def short(seen: Seen) -> None:
        await seen.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b"x" * 200_000)
        seen.writer.close()

    async def unended(seen: Seen) -> None:
        await seen.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.sleep(0.05)
        seen.writer.close()

    for script in (short, unended):
        async with served(script, start_worker):
            call = await gateway.invoke()
            with pytest.raises(BrokenResponse):
                await call.answer()


async def test_a_cancelled_request_closes_the_servers_connection(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def endless(seen: Seen) -> None:
        if "stream" in seen.line:
            await seen.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await seen.reader.read(1)  # until the other side closes

    for path in ("/wait", "/stream"):
        async with served(endless, start_worker) as server:
            call = await gateway.invoke(path=path)
            await eventually(lambda server=server: len(server.seen) == 1, "arrived")  # type: ignore[misc]
            await gateway.cancel(call)
            async with asyncio.timeout(20):
                await server.closed.wait()


async def test_a_request_body_that_breaks_off_is_the_gateways_fault(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    async def rest() -> AsyncIterator[bytes]:
        yield b"a" * 100_000
        raise RuntimeError("the caller left")

    async def script(seen: Seen) -> None:
        while await seen.chunk():
            pass

    async with served(script, start_worker):
        answer = await (await gateway.invoke(b"i", rest=rest())).answer()
    assert answer.status == 502
    assert "request-body-unavailable" in json.loads(answer.body)["type"]


async def test_no_server_at_all(gateway: PeerGateway, start_worker: StartWorker) -> None:
    upstream = Upstream("127.0.0.1", free_port())
    worker = start_worker(upstream.handle)
    await worker.ready()
    answer = await (await gateway.invoke(b"x")).answer()
    assert answer.json()["type"] == "urn:inference-connection:problem-details:bad-gateway"
    await upstream.close()
