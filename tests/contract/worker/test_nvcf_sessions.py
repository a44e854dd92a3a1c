"""Worker behind the stateful proxy of NVIDIA: its HTTP stack and tunnels (docs/internals/interop.md)."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from nvcf_proto import settings
from nvcf_proto.pb import nvcf_pb2
from tests.contract.worker.services import StartServed, settled
from tests.support.peers.nvcf_services import PeerServices
from tests.support.waiting import eventually

LOOKUP_STREAM = "stateful_session_lookup_local"
# As a server in Go answers a CONNECT that it is about to take over.
HEAD = b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 09:30:22 GMT\r\nTransfer-Encoding: chunked\r\n\r\n"


async def never_called(request: Any) -> None:
    """Sessions do not reach the handler."""
    raise AssertionError("a session came to the handler")


@dataclass
class Proxy:
    """Takes tunnels; `first` is sent in one piece with the head."""

    services: PeerServices
    first: bytes = b""
    url: str = ""
    tunnels: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(
        default_factory=asyncio.Queue
    )

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"CONNECT /v1/proxy HTTP/1.1\r\n")
        writer.write(HEAD + self.first)
        self.tunnels.put_nowait((reader, writer))

    async def tunnel(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The next tunnel."""
        async with asyncio.timeout(20):
            return await self.tunnels.get()

    def work(self, request_id: str) -> bytes:
        """Theirs says of a session no more than this; its HTTP/1 address has path and port."""
        message = nvcf_pb2.WorkerInvokeFunctionRequest(
            requestId=request_id, ncaId="account-1", subject="caller-1"
        )
        message.requestTime.GetCurrentTime()
        message.statefulConfig.nvcfRegionOfInvoker = "local"
        http1 = message.statefulConfig.connectionConfigs.add().http1Config
        http1.proxyURI, http1.proxyAuthorizationToken = self.url, "a" * 64
        http3 = message.statefulConfig.connectionConfigs.add().http3Config
        http3.proxyURI, http3.proxyAuthorizationToken = "https://127.0.0.1:1/v1/proxy", "a" * 64
        return message.SerializeToString()

    async def queue(self) -> str:
        """Queue a session; its request id."""
        request_id = str(uuid.uuid4())
        subject = f"rq.local.{self.services.version_id}.{request_id}"
        answer = await self.services.connection.request(subject, self.work(request_id), timeout=10)
        assert "error" not in json.loads(answer.data)
        return request_id

    async def recorded(self, request_id: str) -> bool:
        """Whether the lookup stream knows the session; theirs asks for any version."""
        subject = f"stateful_session.lookup.local.*.{request_id}"
        answer = await self.services.connection.request(
            f"$JS.API.STREAM.MSG.GET.{LOOKUP_STREAM}",
            json.dumps({"last_by_subj": subject}).encode(),
            timeout=10,
        )
        return "error" not in json.loads(answer.data)


@pytest.fixture
async def proxy(services: PeerServices) -> AsyncIterator[Proxy]:
    running = Proxy(services)
    server = await asyncio.start_server(running.accept, "127.0.0.1", 0)
    running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/proxy"
    await services.provision()
    body = {
        "name": LOOKUP_STREAM,
        "subjects": ["stateful_session.lookup.local.>"],
        "retention": "limits",
        "storage": "memory",
        "discard": "new",
        "max_msgs": 100_000,
        "max_msgs_per_subject": 1,
        "max_age": 3_600_000_000_000,
        "allow_direct": True,
    }
    await services.connection.request(
        f"$JS.API.STREAM.CREATE.{LOOKUP_STREAM}", json.dumps(body).encode(), timeout=10
    )
    yield running
    server.close()


@dataclass
class Function:
    """Says `greeting` to whoever connects, then gives back every byte."""

    greeting: bytes = b""
    port: int = 0
    open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.open += 1
        writer.write(self.greeting)
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def function() -> AsyncIterator[Function]:
    served = Function()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    yield served
    server.close()


async def test_a_link_is_raw_whatever_its_head_says_of_framing(
    services: PeerServices, proxy: Proxy, function: Function, serve: StartServed
) -> None:
    """A server in Go announces chunks and sends none; its first bytes may come with the head."""
    proxy.first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    serve(never_called, session_port=function.port)
    await proxy.queue()
    reader, writer = await proxy.tunnel()
    async with asyncio.timeout(20):
        assert await reader.readexactly(len(proxy.first)) == proxy.first
    writer.close()


async def test_the_function_is_not_heard_before_its_client(
    services: PeerServices, proxy: Proxy, function: Function, serve: StartServed
) -> None:
    """Theirs drops what comes between its answer to CONNECT and taking the connection over."""
    function.greeting = b"SETTINGS"
    worker = serve(never_called, session_port=function.port)
    await proxy.queue()
    reader, writer = await proxy.tunnel()
    await eventually(lambda: function.open == 1, "the function has greeted")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await reader.read(1)
    writer.write(b"PRI")
    async with asyncio.timeout(20):
        assert await reader.readexactly(11) == b"SETTINGSPRI"
    writer.close()
    await eventually(lambda: worker.worker.in_flight == 0, "over")


async def test_a_function_that_closes_before_its_client_has_spoken(
    services: PeerServices, proxy: Proxy, serve: StartServed
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    serve(never_called, session_port=server.sockets[0].getsockname()[1])
    await proxy.queue()
    reader, writer = await proxy.tunnel()
    async with asyncio.timeout(20):
        assert await reader.read() == b"bye"
    writer.close()
    await eventually(lambda: settled(services), "acknowledged")
    server.close()


async def test_a_caller_that_leaves_frees_the_slot_at_once(
    services: PeerServices, proxy: Proxy, function: Function, serve: StartServed
) -> None:
    """Theirs broadcasts no cancel for sessions: the end of the tunnel says that the caller has left."""
    serve(never_called, session_port=function.port, concurrency=1)
    first, second = await proxy.queue(), await proxy.queue()
    reader, writer = await proxy.tunnel()
    writer.write(b"x")
    await reader.readexactly(1)
    assert await proxy.recorded(first)
    writer.close()
    reader, writer = await proxy.tunnel()
    writer.write(b"y")
    assert await reader.readexactly(1) == b"y"

    async def forgotten() -> bool:
        return not await proxy.recorded(first) and await proxy.recorded(second)

    await eventually(forgotten, "the first session is purged")
    writer.close()
    await eventually(lambda: settled(services), "acknowledged")


async def test_a_caller_that_is_cut_off_comes_back_by_a_message_without_reply(
    services: PeerServices,
    proxy: Proxy,
    function: Function,
    serve: StartServed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "SESSION_RECONNECT_WAIT", 5.0)
    worker = serve(never_called, session_port=function.port)
    request_id = await proxy.queue()
    reader, writer = await proxy.tunnel()
    writer.write(b"x")
    await reader.readexactly(1)
    # Data that nobody has read makes of the proxy's close a reset.
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    await eventually(lambda: function.open == 0, "the function sees it")
    await services.connection.publish(f"stateful_session.reconnect.{request_id}", proxy.work(request_id))
    reader, writer = await proxy.tunnel()
    writer.write(b"again")
    assert await reader.readexactly(5) == b"again"
    assert await services.queued() == 1
    writer.close()
    await eventually(lambda: worker.worker.in_flight == 0, "over")
