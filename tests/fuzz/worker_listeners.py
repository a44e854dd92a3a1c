"""Damaged input at the gateway's endpoints for workers, at the broker and in a worker's queue."""

from __future__ import annotations

import asyncio
import contextlib
import json
from urllib.parse import urlsplit

import aiohttp
import grpc.aio
import nats.errors
from google.protobuf.message import DecodeError

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from tests.fuzz import corpus
from tests.fuzz.caller_listeners import printable
from tests.fuzz.target import Budget, Report, Target, repeat
from tests.support.peers.worker import H1, Work
from tests.support.platform.gateways import messages_in
from tests.support.waiting import eventually

PULL_TIMEOUT = 60.0
STUCK_SECONDS = 60.0


class WaitingCaller:
    """A caller that waits at the gateway, so that its request has valid tokens to use."""

    def __init__(self, target: Target, report: Report) -> None:
        self._target = target
        self._report = report
        self._caller: asyncio.Task[None] | None = None
        self._work: Work | None = None

    async def work(self) -> Work:
        """Return the waiting caller's request. Start a new call if the last one is complete."""
        if self._work is None or self._caller is None or self._caller.done():
            await self.end()
            self._caller = asyncio.create_task(self._call())
            self._work = await self._target.peer.pull(PULL_TIMEOUT)
            await self._work.ack()
        return self._work

    async def _call(self) -> None:
        platform = self._target.platform
        path = self._target.by_hand.exec if self._report.sent % 2 else self._target.by_hand.pexec
        data = json.dumps({"requestBody": "x" * 40_000}).encode()
        url = platform.gateway.url + path
        with contextlib.suppress(aiohttp.ClientError):
            async with platform.session.post(url, data=data, headers=platform.authorization()) as response:
                body = await response.read()
                if b"internal error" in body:
                    self._report.faults.append(f"the caller got {body[:200]!r}")

    async def end(self) -> None:
        """Cancel the call."""
        if self._caller is not None:
            self._caller.cancel()
            await asyncio.wait({self._caller})
        self._work = self._caller = None


async def request_attach(target: Target, report: Report, budget: Budget) -> None:
    """Send damaged responses to `request-attach`, with valid tokens."""
    mutator, waiting = target.mutator("attach"), WaitingCaller(target, report)
    heads = [head for head in corpus.RESPONSE_HEADS if b" 500 " not in head]

    async def one() -> None:
        work = await waiting.work()
        data = mutator.make(heads)
        report.sent += 1
        with contextlib.suppress(aiohttp.ClientError):
            status, body = await work.post(data)
            if b"internal error" in body:
                report.check(status, body, data)
            if mutator.chance.random() < 0.1:
                await work.get(accept=printable(mutator.make([H1.encode()])))

    await repeat(budget, report, one)
    await waiting.end()


async def inline_replies(target: Target, report: Report, budget: Budget) -> None:
    """Send damaged responses over the broker, with valid and invalid tokens."""
    mutator, waiting = target.mutator("inline"), WaitingCaller(target, report)

    async def one() -> None:
        work = await waiting.work()
        assert work.message.headers is not None
        subject = work.message.headers["Nvcf-Reply-Subject"]
        if mutator.chance.random() < 0.1:
            subject = subject.rpartition(".")[0] + "." + new_id()
        report.sent += 1
        with contextlib.suppress(nats.errors.TimeoutError):
            await target.client.request(subject, mutator.make(corpus.INLINE), timeout=5)

    await repeat(budget, report, one)
    await waiting.end()


async def broker_tokens(target: Target, report: Report, budget: Budget) -> None:
    """Connect to the broker with damaged tokens. Each must be refused."""
    mutator = target.mutator("connect")
    address = urlsplit(target.platform.broker.url)

    async def one() -> None:
        report.sent += 1
        token = mutator.make(corpus.BROKER_TOKENS).decode("latin-1")
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            await reader.readline()
            options = {
                "verbose": False,
                "auth_token": token[:3000],
                "name": "fuzz",
                "lang": "x",
                "version": "1",
            }
            writer.write(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
            async with asyncio.timeout(5):
                line = await reader.readline()
            if line.startswith(b"PONG"):
                report.faults.append(f"accepted with token {token[:200]!r}")
        except (ConnectionError, TimeoutError):
            pass
        finally:
            writer.close()

    await repeat(budget, report, one)


async def subjects(target: Target, report: Report, budget: Budget) -> None:
    """Publish fallback lookups, polls, cancellations and announcements with damaged bodies."""
    mutator = target.mutator("subjects")
    served, by_hand = target.served.id, target.by_hand.id
    ids = [corpus.REQUEST.encode()]
    destinations = [
        (f"nvcf.attach.{served}", ids),
        (f"nvcf.attach.{by_hand}", ids),
        ("nvcf.attach.nonsense", ids),
        (f"nvcf.cancel.{served}", ids),
        (f"rq_polling.{corpus.REQUEST}", corpus.WORK),
        (f"rq_polling.{served}.{corpus.REQUEST}", corpus.WORK),
        (f"stateful_session.reconnect.{corpus.REQUEST}", corpus.WORK),
        (f"nvcf.result.{corpus.REQUEST}", [b""]),
        ("nvcf.ratelimit.counts", [corpus.document({"replica": "a", "counts": {"x": [1, 2]}})]),
        ("nvcf.ratelimit.members", [corpus.document({"members": ["a"]})]),
        ("nvcf.ratelimit.join", [b"a"]),
    ]

    async def one() -> None:
        for _ in range(50):
            subject, good = mutator.chance.choice(destinations)
            report.sent += 1
            await target.client.publish(subject, mutator.make(good), reply="nobody.listens")
        await target.client.flush(10)

    await repeat(budget, report, one)


async def queue_messages(target: Target, report: Report, budget: Budget) -> None:
    """Put damaged requests into the queue of a real worker."""
    mutator, version = target.mutator("queue"), target.served.id
    good = []
    for data in corpus.WORK:
        message = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(data)
        # The gateway does not know the token and says so at once, so the worker does not retry.
        message.statelessConfig.connectionConfigs[0].http1Config.targetURI = target.platform.gateway.url
        message.largeResponseUrl = ""
        del message.inputAssetReference[:]
        good.append(message.SerializeToString())

    async def one() -> None:
        for _ in range(100):
            report.sent += 1
            data, request_id = mutator.make(good), new_id()
            if mutator.chance.random() < 0.999:
                data = _addressed(data, request_id, target.platform.gateway.url)
            await target.client.publish(f"rq.local.{version}.{request_id}", data)
        await target.client.flush(10)
        await _wait_for_worker(target, report)

    await repeat(budget, report, one)


def _addressed(data: bytes, request_id: str, url: str) -> bytes:
    """Return the request with a new id and the address of the gateway.

    A worker retries for a long time at an address where nobody listens.
    """
    message = nvcf_pb2.WorkerInvokeFunctionRequest()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return data
    for config in message.statelessConfig.connectionConfigs:
        if config.http1Config.targetURI:
            config.http1Config.targetURI = url
    message.requestId = request_id
    return message.SerializeToString()


async def _wait_for_worker(target: Target, report: Report) -> None:
    """Wait until the worker has taken most of the queue. A worker that takes nothing is a fault."""
    stream = f"rq_local_{target.served.id}"
    while (queued := await messages_in(target.client, stream)) > 100:

        async def progresses(queued: int = queued) -> bool:
            return await messages_in(target.client, stream) < queued

        try:
            await eventually(progresses, "the worker takes requests", STUCK_SECONDS)
        except AssertionError as error:
            report.faults.append(f"{error}, {queued} requests are queued")
            return


async def grpc_port(target: Target, report: Report, budget: Budget) -> None:
    """Send damaged metadata and messages to the WorkerService, and sometimes raw bytes to its port."""
    mutator, address = target.mutator("grpc"), target.platform.gateway.grpc
    methods = (
        "ConnectOnce",
        "ProvisionRegionalWorker",
        "RefreshLargeUploadCredentials",
        "RequestArtifacts",
        "x",
    )
    host, _, port = address.rpartition(":")

    async def one(channel: grpc.aio.Channel) -> None:
        report.sent += 1
        token = printable(mutator.make(corpus.JWT))
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/nvcf.Worker/{mutator.chance.choice(methods)}"
        )
        try:
            await call(
                mutator.make(corpus.CONNECT),
                metadata=(("authorization", f"Bearer {token}"), ("x-bin", mutator.make(corpus.JWT)[:1000])),
                timeout=5,
            )
        except grpc.aio.AioRpcError as error:
            unreadable = "deserializing" in (error.details() or "")
            if error.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL) and not unreadable:
                report.faults.append(f"{error.code()}: {error.details()}")
        if mutator.chance.random() < 0.05:
            await _raw(
                host,
                int(port),
                mutator.make([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"]),
            )

    async with grpc.aio.insecure_channel(address) as channel:
        await repeat(budget, report, lambda: one(channel))


async def _raw(host: str, port: int, data: bytes) -> None:
    _, writer = await asyncio.open_connection(host, port)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
    writer.close()
