"""Damaged input where workers and the broker are expected."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from urllib.parse import urlsplit

import aiohttp
import grpc.aio
import nats.errors
from google.protobuf.message import DecodeError

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from tests.fuzz import corpus
from tests.fuzz.callers_doors import printable
from tests.fuzz.scene import Budget, Report, Scene, until
from tests.support.peers.worker import H1, Work
from tests.support.platform.gateways import messages_in

PULL_PATIENCE = 20.0
STUCK_SECONDS = 40.0


class Waiting:
    """A caller that waits at the gateway, so that there are live tokens to try."""

    def __init__(self, found: Scene, report: Report) -> None:
        self._found = found
        self._report = report
        self._caller: asyncio.Task[None] | None = None
        self._work: Work | None = None

    async def work(self) -> Work:
        """The waiting caller's request, pulled; a new one when the last has been answered."""
        if self._work is None or self._caller is None or self._caller.done():
            await self.end()
            self._caller = asyncio.create_task(self._call())
            self._work = await self._found.peer.pull(PULL_PATIENCE)
            await self._work.ack()
        return self._work

    async def _call(self) -> None:
        platform = self._found.platform
        path = self._found.by_hand.exec if self._report.sent % 2 else self._found.by_hand.pexec
        data = json.dumps({"requestBody": "x" * 40_000}).encode()
        url = platform.gateway.url + path
        with contextlib.suppress(aiohttp.ClientError):
            async with platform.session.post(url, data=data, headers=platform.authorization()) as response:
                body = await response.read()
                if b"internal error" in body:
                    self._report.faults.append(f"the caller got {body[:200]!r}")

    async def end(self) -> None:
        if self._caller is not None:
            self._caller.cancel()
            await asyncio.wait({self._caller})
        self._work = self._caller = None


async def request_attach(found: Scene, report: Report, budget: Budget) -> None:
    """Answers at `request-attach`, by live tokens."""
    mutator, waiting = found.mutator("attach"), Waiting(found, report)
    heads = [head for head in corpus.RESPONSE_HEADS if b" 500 " not in head]

    async def one() -> None:
        work = await waiting.work()
        data = mutator.make(heads)
        report.sent += 1
        with contextlib.suppress(aiohttp.ClientError):
            status, body = await work.post(data)
            if b"internal error" in body:
                report.answered(status, body, data)
            if mutator.chance.random() < 0.1:
                await work.get(accept=printable(mutator.make([H1.encode()])))

    await until(budget, report, one)
    await waiting.end()


async def inline_replies(found: Scene, report: Report, budget: Budget) -> None:
    """Answers over the broker, by live tokens and by made-up ones."""
    mutator, waiting = found.mutator("inline"), Waiting(found, report)

    async def one() -> None:
        work = await waiting.work()
        assert work.message.headers is not None
        subject = work.message.headers["Nvcf-Reply-Subject"]
        if mutator.chance.random() < 0.1:
            subject = subject.rpartition(".")[0] + "." + new_id()
        report.sent += 1
        with contextlib.suppress(nats.errors.TimeoutError):
            await found.client.request(subject, mutator.make(corpus.INLINE), timeout=5)

    await until(budget, report, one)
    await waiting.end()


async def broker_tokens(found: Scene, report: Report, budget: Budget) -> None:
    """Connections to the broker with damaged tokens: each is asked about and refused."""
    mutator = found.mutator("connect")
    address = urlsplit(found.platform.broker.url)

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
                answer = await reader.readline()
            if answer.startswith(b"PONG"):
                report.faults.append(f"let in with token {token[:200]!r}")
        except (ConnectionError, TimeoutError):
            pass
        finally:
            writer.close()

    await until(budget, report, one)


async def subjects(found: Scene, report: Report, budget: Budget) -> None:
    """Rescue, polls, cancellations and announcements with damaged bodies."""
    mutator = found.mutator("subjects")
    served, by_hand = found.served.id, found.by_hand.id
    ids = [corpus.REQUEST.encode()]
    doors = [
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
            subject, good = mutator.chance.choice(doors)
            report.sent += 1
            await found.client.publish(subject, mutator.make(good), reply="nobody.listens")
        await found.client.flush(10)

    await until(budget, report, one)


async def queue_messages(found: Scene, report: Report, budget: Budget) -> None:
    """Damaged requests in the queue of a real worker."""
    mutator, version = found.mutator("queue"), found.served.id
    good = []
    for data in corpus.WORK:
        message = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(data)
        # A token that nobody knows: the worker is told so at once.
        message.statelessConfig.connectionConfigs[0].http1Config.targetURI = found.platform.gateway.url
        message.largeResponseUrl = ""
        del message.inputAssetReference[:]
        good.append(message.SerializeToString())

    async def one() -> None:
        for _ in range(100):
            report.sent += 1
            data, request_id = mutator.make(good), new_id()
            if mutator.chance.random() < 0.999:
                data = _at_home(data, request_id, found.platform.gateway.url)
            await found.client.publish(f"rq.local.{version}.{request_id}", data)
        await found.client.flush(10)
        await _taken(found, report)

    await until(budget, report, one)


def _at_home(data: bytes, request_id: str, url: str) -> bytes:
    """The same request with an id of its own, at an address that exists: others are tried again for long."""
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


async def _taken(found: Scene, report: Report) -> None:
    """The worker gets through what was queued; one that has stopped doing so is a fault."""
    stream, before, last = f"rq_local_{found.served.id}", -1, time.monotonic()
    while (now := await messages_in(found.client, stream)) > 100:
        if now != before:
            before, last = now, time.monotonic()
        if time.monotonic() - last > STUCK_SECONDS:
            report.faults.append(f"the worker takes nothing more, {now} requests are queued")
            return
        await asyncio.sleep(0.01)


async def grpc_port(found: Scene, report: Report, budget: Budget) -> None:
    """Metadata and messages of the WorkerService; raw bytes on its port now and then."""
    mutator, address = found.mutator("grpc"), found.platform.gateway.grpc
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
        await until(budget, report, lambda: one(channel))


async def _raw(host: str, port: int, data: bytes) -> None:
    _, writer = await asyncio.open_connection(host, port)
    with contextlib.suppress(ConnectionError):
        writer.write(data)
        await writer.drain()
    writer.close()
