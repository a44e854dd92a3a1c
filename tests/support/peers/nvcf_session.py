"""The session half of NVIDIA's worker: an acknowledged registration, CONNECT as Go writes it, a purge."""

from __future__ import annotations

import asyncio
import contextlib
import json
from urllib.parse import urlsplit

from nvcf_proto.pb import nvcf_pb2
from tests.support.peers.nvcf_attach import Inbox
from tests.support.peers.nvcf_http import request_head
from tests.support.peers.nvcf_worker import NvcfWorker
from tests.support.peers.tunnel import Stream, copy

Request = nvcf_pb2.WorkerInvokeFunctionRequest


async def connect(request: Request) -> tuple[int, bytes, Stream]:
    """Send one CONNECT to the HTTP/1 address. Its path is the target, and it has no body."""
    config = next(
        c for c in request.statefulConfig.connectionConfigs if c.HasField("http1Config")
    ).http1Config
    url = urlsplit(config.proxyURI)
    reader, writer = await asyncio.open_connection(url.hostname, url.port or 80)
    headers = {
        "Authorization": f"Bearer {config.proxyAuthorizationToken}",
        # Go writes header names its own way.
        "X-Request-Id": request.requestId,
        "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    writer.write(request_head("CONNECT", url.path, url.netloc, headers, None))
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head, (reader, writer)


class SessionHalf:
    """Serves a worker's sessions from a function's port. `purges` has the broker's responses to purges."""

    def __init__(self, worker: NvcfWorker, port: int) -> None:
        self.worker, self.port = worker, port
        self.registrations = 0
        self.purges: list[dict[str, object]] = []
        self.links: list[Stream] = []
        self.dialled: list[int] = []
        worker.on_session = self.serve

    async def serve(self, request: Request, region: str) -> None:
        """Serve one session until no caller reconnects for 30 seconds, or the end is announced."""
        client, version = self.worker.client, self.worker.version
        subject = f"stateful_session.lookup.{region}.{version.id}.{request.requestId}"
        record = nvcf_pb2.StatefulSessionTracking(
            functionId=version.function_id, functionVersionId=version.id, invokerNcaId=request.ncaId
        )
        for _ in range(2):  # at once, and every 20 minutes
            answer = json.loads((await client.request(subject, record.SerializeToString(), timeout=5)).data)
            assert "error" not in answer, answer
            self.registrations += 1
        arrivals = await Inbox.open(client, f"stateful_session.reconnect.{request.requestId}")
        try:
            await self._link(request)
            while True:
                # Nothing is answered to the message.
                message = await arrivals.next(timeout=30)
                await self._link(Request.FromString(message.data))
        finally:
            await arrivals.close()
            body = json.dumps({"filter": subject}).encode()
            stream = f"stateful_session_lookup_{region}"
            purge = client.request(f"$JS.API.STREAM.PURGE.{stream}", body, timeout=5)
            self.purges.append(json.loads((await asyncio.shield(purge)).data))

    async def _link(self, request: Request) -> None:
        status, _, link = await connect(request)
        self.dialled.append(status)
        if status != 200:
            return
        self.links.append(link)
        function = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            ways = [
                asyncio.create_task(copy(link[0], function[1])),
                asyncio.create_task(copy(function[0], link[1])),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
        finally:
            link[1].close()
            function[1].close()

    def cut(self) -> None:
        """Abort all tunnels."""
        for _, writer in self.links:
            with contextlib.suppress(Exception):
                writer.transport.abort()
        self.links.clear()
