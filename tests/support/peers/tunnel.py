"""The worker's half of a session, written from protocol.md, section 7 alone: CONNECT, then raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

from nats.aio.subscription import Subscription

from nvcf_proto.pb import nvcf_pb2
from tests.support.peers.worker import PeerWorker, Work

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def dial(
    request: nvcf_pb2.WorkerInvokeFunctionRequest,
    *,
    token: str | None = None,
    request_id: str | None = None,
    drop: tuple[str, ...] = (),
    method: str = "CONNECT",
    path: str | None = None,
    extra: dict[str, str] | None = None,
    tls: Path | None = None,
) -> tuple[int, bytes, Stream]:
    """Connect to the proxy. Returns status, head and streams. Headers can be changed or omitted (`drop`).

    `tls`: the certificate to trust.
    """
    config = request.statefulConfig.connectionConfigs[0].http1Config
    url = urlsplit(config.proxyURI)
    reader, writer = await asyncio.open_connection(
        url.hostname, url.port or 80, ssl=ssl.create_default_context(cafile=tls) if tls else None
    )
    headers = {
        "Host": url.netloc,
        "Authorization": f"Bearer {token or config.proxyAuthorizationToken}",
        "X-Request-ID": request_id or request.requestId,
        **(extra or {}),
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if name not in drop]
    head = "\r\n".join([f"{method} {path or url.path} HTTP/1.1", *lines])
    writer.write(head.encode() + b"\r\n\r\n")
    async with asyncio.timeout(10):
        answer = await reader.readuntil(b"\r\n\r\n")
    return int(answer.split(b" ")[1]), answer, (reader, writer)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes from one side to the other, and then its end."""
    with contextlib.suppress(OSError):
        while data := await reader.read(256 * 1024):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class TunnelWorker:
    """Serves sessions of a version from a function's port, as many at once as arrive."""

    def __init__(self, worker: PeerWorker, port: int) -> None:
        self.worker = worker
        self.port = port
        self.works: list[Work] = []
        self.links: list[Stream] = []
        self.statuses: list[int] = []
        self._group: asyncio.TaskGroup
        self._subscriptions: list[Subscription] = []

    async def pull_forever(self, group: asyncio.TaskGroup) -> None:
        """Serve every request."""
        self._group = group
        while True:
            work = await self.worker.pull(expires=60)
            self.works.append(work)
            subscription = await self._listen(work)
            group.create_task(self._reconnects(subscription))
            group.create_task(self._served(work))

    async def _served(self, work: Work) -> None:
        await self.serve(work.request)
        await work.ack()

    async def _listen(self, work: Work) -> Subscription:
        assert work.message.headers is not None
        subscription = await self.worker.client.subscribe(work.message.headers["Nvcf-Reconnect-Subject"])
        self._subscriptions.append(subscription)
        record = nvcf_pb2.StatefulSessionTracking(
            functionId=self.worker.version.function_id,
            functionVersionId=self.worker.version.id,
            invokerNcaId=work.request.ncaId,
        )
        subject = f"stateful_session.lookup.local.{self.worker.version.id}.{work.request.requestId}"
        await self.worker.client.publish(subject, record.SerializeToString())
        await self.worker.client.flush()
        return subscription

    async def _reconnects(self, subscription: Subscription) -> None:
        async for message in subscription.messages:
            request = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(message.data)
            self._group.create_task(self.serve(request))

    async def serve(self, request: nvcf_pb2.WorkerInvokeFunctionRequest) -> None:
        """Serve one tunnel."""
        try:
            status, _, link = await dial(request)
        except (OSError, EOFError):
            # Its caller has left.
            return
        self.statuses.append(status)
        if status != 200:
            return
        function = await asyncio.open_connection("127.0.0.1", self.port)
        self.links.append(link)
        try:
            async with asyncio.TaskGroup() as group:
                ways = {
                    group.create_task(copy(link[0], function[1])),
                    group.create_task(copy(function[0], link[1])),
                }
                _, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in rest:
                    way.cancel()
        finally:
            link[1].close()
            function[1].close()

    async def forget_sessions(self) -> None:
        """Unsubscribe from reconnects."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        await self.worker.client.flush()

    def cut(self) -> None:
        """Abort all tunnels."""
        for _, writer in self.links:
            writer.transport.abort()
        self.links.clear()


@contextlib.asynccontextmanager
async def tunnel_worker(worker: PeerWorker, port: int) -> AsyncIterator[TunnelWorker]:
    """Run a worker that serves sessions for the length of a context."""
    serving = TunnelWorker(worker, port)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            await serving.pull_forever(group)

    task = asyncio.create_task(run())
    try:
        yield serving
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()
