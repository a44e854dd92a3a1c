"""NVIDIA's worker as the gateway sees it, written from the facts of its sources.

Order of its start: broker connection (first token, any inbox), metadata credentials, ConnectOnce, cancel
subscription, consumer info for each region (ProvisionRegionalWorker where it is missing), one long pull a
region. A request: signs of life, the rest of the body in the background, the function, the answer by one
POST, polls only after a 202, and the acknowledgement whatever happened. It knows none of our additions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import grpc.aio
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.peers.nvcf_attach import AlreadySent, Attachment, Function, Inbox, Reply, Seen, problem
from tests.support.peers.nvcf_http import GoClient
from tests.support.peers.worker import broker_token
from tests.support.platform.gateways import Gateway, Platform, Version

Request = nvcf_pb2.WorkerInvokeFunctionRequest
SECOND = 1_000_000_000
# Some of the headers that only the worker sets.
_OWNED = ("nvcf-reqid", "nvcf-sub", "nvcf-ncaid", "nvcf-function-id", "nvcf-function-version-id")


class NvcfWorker:
    """Serves a version until it is stopped. `errors` has the asynchronous errors of the broker."""

    def __init__(self, platform: Platform, version: Version, function: Function, gateway: Gateway) -> None:
        self.platform, self.version, self.function, self.gateway = platform, version, function, gateway
        self.instance = new_id()
        self.client = Client()
        self.http = GoClient()
        self.errors: list[str] = []
        self.failures: list[str] = []
        self.regions: list[str] = []
        self.provisioned: list[str] = []
        self.metadata_token = ""
        self.connects = 0
        self.slots = 1
        self.naks = 0
        self.keepalive = 10.0
        self.cancelled: list[str] = []
        self.on_session: Callable[[Request, str], Awaitable[None]] | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._token = ""
        self._group: asyncio.TaskGroup

    # --- start

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Connect and start pulling."""
        self._group = group
        self._token = await self.platform.worker_token(self.version, self.instance)
        await self.client.connect(
            self.platform.broker.url.split(","),
            token=broker_token(self._token),
            name=f"worker_{self.version.id}_{self.instance}",
            error_cb=self._error,
            ping_interval=10,
            connect_timeout=5,
        )
        async with grpc.aio.insecure_channel(self.gateway.grpc) as channel:
            stub: nvcf_pb2_grpc.WorkerAsyncStub = nvcf_pb2_grpc.WorkerStub(channel)
            await self._introduce(stub)
            await self.client.subscribe(f"nvcf.cancel.{self.version.id}", cb=self._cancel)
            for region in self.regions:
                await self._consumer(stub, region)
        for region in self.regions:
            group.create_task(self._pull(region))

    async def _introduce(self, stub: nvcf_pb2_grpc.WorkerAsyncStub) -> None:
        ids = {"functionId": self.version.function_id, "functionVersionId": self.version.id}
        metadata = await stub.RequestFunctionMetadataCredentials(
            nvcf_pb2.FunctionMetadataCredentialsRequest(ncaId="account-one", **ids), **self._bearer()
        )
        assert metadata.expiration.ToSeconds() > time.time()
        self.metadata_token = metadata.functionMetadataCredentialsToken
        connected = await stub.ConnectOnce(
            nvcf_pb2.WorkerConnect(instanceId=self.instance, **ids), **self._bearer()
        )
        assert connected.connectedRegion, "the worker takes no answer without a region"
        assert connected.expiration.ToSeconds() > time.time() + 10, "nor a token that is as good as expired"
        self.connects += 1
        self._token = connected.nvcfWorkerToken
        self.regions = [connected.connectedRegion, *connected.otherRegions]

    def _bearer(self) -> dict[str, Any]:
        return {"metadata": (("authorization", f"Bearer {self._token}"),), "timeout": 20}

    async def _consumer(self, stub: nvcf_pb2_grpc.WorkerAsyncStub, region: str) -> None:
        stream = f"rq_{region}_{self.version.id}"
        for _ in range(2):
            answer = await self.client.request(
                f"$JS.API.CONSUMER.INFO.{stream}.{stream}_workers", b"", timeout=5
            )
            error = json.loads(answer.data).get("error")
            if error is None:
                return
            assert error["err_code"] in (10014, 10059), error
            self.provisioned.append(region)
            await stub.ProvisionRegionalWorker(
                nvcf_pb2.ProvisionWorkerRequest(
                    instanceId=self.instance,
                    functionId=self.version.function_id,
                    functionVersionId=self.version.id,
                    regionToProvision=region,
                ),
                **self._bearer(),
            )
        raise AssertionError(f"no consumer in {region}")

    async def _error(self, error: Exception) -> None:
        self.errors.append(str(error))

    async def _cancel(self, message: Msg) -> None:
        request_id = message.data.decode()
        task = self._running.get(request_id)
        if task is not None:
            self.cancelled.append(request_id)
            task.cancel()

    # --- pulling

    async def _pull(self, region: str) -> None:
        stream = f"rq_{region}_{self.version.id}"
        while True:
            while self.slots <= 0:
                await asyncio.sleep(0.01)
            inbox = self.client.new_inbox()
            arrivals = await Inbox.open(self.client, inbox)
            body = {"expires": 300 * SECOND, "batch": self.slots, "idle_heartbeat": 5 * SECOND}
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers"
            await self.client.publish(subject, json.dumps(body).encode(), reply=inbox)
            left = self.slots
            try:
                while left > 0:
                    message = await arrivals.next(timeout=320)
                    status = (message.headers or {}).get("Status")
                    if status == "100":
                        continue
                    if status is not None:
                        break
                    left -= 1
                    await self._take(message, region)
            finally:
                await arrivals.close()

    async def _take(self, message: Msg, region: str) -> None:
        request = Request.FromString(message.data)
        if self.slots <= 0:
            self.naks += 1
            await message.nak()
            return
        self.slots -= 1
        task = self._group.create_task(self._handle(message, request, region))
        self._running[request.requestId] = task

    async def _handle(self, message: Msg, request: Request, region: str) -> None:
        alive = asyncio.create_task(self._keep_alive(message))
        try:
            if request.HasField("statefulConfig"):
                assert self.on_session is not None
                await self.on_session(request, region)
            else:
                await self._serve(request)
        except asyncio.CancelledError:
            if request.requestId not in self.cancelled:
                raise
        except (OSError, EOFError, AssertionError, AlreadySent, TimeoutError) as error:
            self.failures.append(str(error) or type(error).__name__)
        finally:
            alive.cancel()
            self._running.pop(request.requestId, None)
            # First: else the next pull could be given the same message again.
            await message.ack()
            self.slots += 1

    async def _keep_alive(self, message: Msg) -> None:
        while True:
            await asyncio.sleep(self.keepalive)
            await message.in_progress()

    # --- one request

    async def _serve(self, request: Request) -> None:
        attachment = Attachment(self.http, request.statelessConfig, request)
        if not request.requestMethod:
            await self._fill(request, attachment)
        try:
            await self._run(request, attachment)
        except (OSError, AssertionError, TimeoutError, ValueError) as error:
            self.failures.append(str(error))
            await attachment.post(
                problem("nvcf-worker-service", 500, "Internal error while making inference request")
            )

    async def _fill(self, request: Request, attachment: Attachment) -> None:
        """Return the whole request by GET: its head as HTTP/1.1, then the body without framing."""
        data = await attachment.rest()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        request.requestMethod, request.requestPath, protocol = first.split(" ")
        assert protocol == "HTTP/1.1"
        for line in lines:
            name, _, value = line.partition(": ")
            assert name.lower() != "transfer-encoding", "only identity is understood"
            request.requestHeaders.add(key=name, value=value)
        request.requestBody = body
        attachment.got = None

    async def _seen(self, request: Request, attachment: Attachment) -> tuple[Seen, float]:
        headers: dict[str, str] = {}
        for pair in request.requestHeaders:
            if pair.key.lower() not in _OWNED:
                headers.setdefault(pair.key.lower(), pair.value)
        headers.setdefault("content-type", "application/json")
        headers |= {"nvcf-reqid": request.requestId, "nvcf-sub": request.subject, "nvcf-ncaid": request.ncaId}
        target = int(headers.get("nvcf-poll-seconds") or 60)
        shifted = target - (time.time() - request.requestTime.ToNanoseconds() / 1e9)
        headers["nvcf-poll-seconds"] = str(int(shifted))
        body = request.requestBody + await attachment.rest()
        return Seen(request.requestMethod, request.requestPath, headers, body, target), shifted

    async def _run(self, request: Request, attachment: Attachment) -> None:
        seen, shifted = await self._seen(request, attachment)
        compatible = seen.headers.get("nvcf-feature-disable-worker-compatibility") != "true"
        compatible = compatible and seen.headers.get("accept", "").split(";")[0] != "text/event-stream"
        working = asyncio.create_task(self._ask(seen, compatible))
        try:
            reply = await self._wait(working, shifted, compatible)
            if reply.status == 202:
                await self._polls(
                    request, attachment, working, reply, max(2 * seen.poll_seconds, 10), shifted
                )
            else:
                await attachment.post(reply)
        finally:
            working.cancel()

    async def _ask(self, seen: Seen, compatible: bool) -> Reply:
        reply = await self.function(seen)
        if compatible and reply.status >= 400:
            with contextlib.suppress(ValueError):
                return problem("inference-service", reply.status, json.loads(reply.body)["error"])
            return problem("inference-service", reply.status, "Inference error")
        return reply

    @staticmethod
    async def _wait(working: asyncio.Task[Reply], shifted: float, compatible: bool) -> Reply:
        if not compatible:
            return await working
        if shifted < -2:
            raise ValueError("response target too far in the past")
        done, _ = await asyncio.wait({working}, timeout=max(0.0, shifted))
        return working.result() if done else Reply(202)

    async def _polls(
        self,
        request: Request,
        attachment: Attachment,
        working: asyncio.Task[Reply],
        reply: Reply,
        patience: float,
        shifted: float,
    ) -> None:
        """Serve polls one after the other, each with its own tokens."""
        arrivals = await Inbox.open(self.client, f"rq_polling.{request.requestId}")
        try:
            while reply.status == 202:
                try:
                    await attachment.post(reply)
                except ConnectionError:
                    if shifted > 0:
                        raise
                    patience = 5.0
                message = await arrivals.next(timeout=patience)
                poll = Request.FromString(message.data)
                await message.respond(b"")
                attachment = Attachment(self.http, poll.statelessConfig, poll)
                _, shifted = await self._seen(poll, attachment)
                reply = await self._wait(working, shifted, compatible=True)
            await attachment.post(reply)
        finally:
            await arrivals.close()


@contextlib.asynccontextmanager
async def nvcf_worker(
    platform: Platform,
    version: Version,
    function: Function,
    *,
    slots: int = 1,
    gateway: Gateway | None = None,
) -> AsyncIterator[NvcfWorker]:
    """Run a worker for the length of a context."""
    worker = NvcfWorker(platform, version, function, gateway or platform.gateway)
    worker.slots = slots
    started = asyncio.Event()
    failed: list[BaseException] = []

    async def run() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                await worker.start(group)
                started.set()
        except BaseException as error:
            failed.append(error)
            started.set()
            raise

    task = asyncio.create_task(run())
    await started.wait()
    try:
        if failed:
            raise failed[0]
        yield worker
    finally:
        task.cancel()
        await asyncio.wait({task})
        worker.http.close()
        await worker.client.close()


async def fetched(url: str, method: str = "GET", data: bytes | None = None) -> tuple[int, bytes]:
    """Assets and large results, transferred like the worker's REST client does."""
    headers = {"Content-Type": "application/zip"} if data is not None else {}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, data=data, headers=headers) as response,
    ):
        return response.status, await response.read()
