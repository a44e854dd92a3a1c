"""The gateway's half of a session, written from protocol.md, section 7 alone, to test the worker against."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from nvcf_proto.pb import nvcf_pb2
from tests.support.peers.gateway import PeerGateway

LOOKUP_STREAM = "stateful_session_lookup_local"


@dataclass
class Tunnel:
    """A worker's CONNECT and what follows it."""

    line: str
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def echo(self, data: bytes) -> bytes:
        """Send data to the function and return its response."""
        self.writer.write(data)
        async with asyncio.timeout(20):
            return await self.reader.readexactly(len(data))

    async def ended(self) -> None:
        """Wait until the function closes, and close too, as an HTTP client does."""
        async with asyncio.timeout(20):
            assert await self.reader.read() == b""
        self.writer.close()

    def cut(self) -> None:
        """Abort the tunnel with a RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class PeerProxy:
    """Responds to CONNECT with `answers` in turn, then with 200."""

    gateway: PeerGateway
    url: str = ""
    answers: list[int] = field(default_factory=list)
    dials: list[dict[str, str]] = field(default_factory=list)
    tunnels: asyncio.Queue[Tunnel] = field(default_factory=asyncio.Queue)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        self.dials.append(headers)
        status = self.answers.pop(0) if self.answers else 200
        writer.write(f"HTTP/1.1 {status} Whatever\r\n\r\n".encode())
        if status == 200:
            self.tunnels.put_nowait(Tunnel(head[0], headers, reader, writer))
        else:
            writer.close()

    async def tunnel(self) -> Tunnel:
        """Return the next tunnel."""
        async with asyncio.timeout(20):
            return await self.tunnels.get()

    def work(self, request_id: str, token: str) -> nvcf_pb2.WorkerInvokeFunctionRequest:
        """Return a request for a session."""
        message = nvcf_pb2.WorkerInvokeFunctionRequest(
            requestId=request_id, ncaId="account-1", subject="caller-1"
        )
        message.statefulConfig.nvcfRegionOfInvoker = "local"
        # Another kind of connection first, which a worker may not know.
        http3 = message.statefulConfig.connectionConfigs.add().http3Config
        http3.proxyURI, http3.proxyAuthorizationToken = "https://127.0.0.1:1/v1/proxy", "h3"
        http1 = message.statefulConfig.connectionConfigs.add().http1Config
        http1.proxyURI, http1.proxyAuthorizationToken = self.url, token
        return message

    async def queue(self, *, token: str | None = None, headers: dict[str, str] | None = None) -> str:
        """Queue a session. Returns its request id."""
        request_id = str(uuid.uuid4())
        subject = f"rq.local.{self.gateway.version_id}.{request_id}"
        data = self.work(request_id, token or "first").SerializeToString()
        answer = await self.gateway.connection.request(subject, data, timeout=10, headers=headers)
        assert "error" not in json.loads(answer.data)
        return request_id

    async def reconnect(self, request_id: str, token: str, subject: str | None = None) -> None:
        """Ask the worker to connect again. Raises NoRespondersError if it does not subscribe."""
        data = self.work(request_id, token).SerializeToString()
        await self.gateway.connection.request(
            subject or f"stateful_session.reconnect.{request_id}", data, timeout=10
        )

    async def make_lookup_stream(self) -> None:
        """Create the stream of session records."""
        body = {
            "name": LOOKUP_STREAM,
            "subjects": ["stateful_session.lookup.local.>"],
            "max_msgs_per_subject": 1,
            "discard": "old",
            "allow_direct": True,
            "allow_msg_ttl": True,
        }
        await self.gateway.connection.request(
            f"$JS.API.STREAM.CREATE.{LOOKUP_STREAM}", json.dumps(body).encode(), timeout=10
        )

    async def record(self, request_id: str) -> nvcf_pb2.StatefulSessionTracking | None:
        """Return the record of a session in the lookup stream."""
        subject = f"stateful_session.lookup.local.{self.gateway.version_id}.{request_id}"
        answer = await self.gateway.connection.request(
            f"$JS.API.DIRECT.GET.{LOOKUP_STREAM}.{subject}", b"", timeout=10
        )
        if answer.headers and answer.headers.get("Status") == "404":
            return None
        return nvcf_pb2.StatefulSessionTracking.FromString(answer.data)

    async def cancel(self, request_id: str) -> None:
        """Announce that the caller disconnected."""
        await self.gateway.connection.publish(f"nvcf.cancel.{self.gateway.version_id}", request_id.encode())


@contextlib.asynccontextmanager
async def peer_proxy(gateway: PeerGateway) -> AsyncIterator[PeerProxy]:
    """Run a proxy on a free port."""
    proxy = PeerProxy(gateway)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/proxy"
    await gateway.provision()
    await proxy.make_lookup_stream()
    try:
        yield proxy
    finally:
        server.close()
