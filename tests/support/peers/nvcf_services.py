"""NVIDIA's invocation service and WorkerService for a worker, written from the facts of their sources.

Unlike `peer_gateway` it offers none of our additions, and is as strict as theirs where that shows: request
streams in memory and a consumer without a limit of deliveries; header names in small letters; a body field
even when it is empty; single-use tokens; at most 64 response headers; the answer to the POST comes when the
caller has read the body, or at once when it leaves; a refusal closes the connection with the body unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from aiohttp import web

from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.peers.calls import Call
from tests.support.peers.gateway import REGION, PeerGateway
from tests.support.peers.nvcf_broker import Callout, CalloutBroker
from tests.support.peers.worker_service import WorkerService, timestamp

MAX_HEAD = 8192 + 4096 * 100
MAX_HEADERS = 64
WAIT = 20.0


@dataclass
class Caller:
    """The service's state of one caller. It reads while `reading` is set, and may disconnect."""

    reading: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    posts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reading.set()


class PeerServices(PeerGateway):
    """One region's services. `connect_answer` may change the response of ConnectOnce."""

    def __init__(self, broker: CalloutBroker) -> None:
        super().__init__(broker.service_url)
        self.callout = Callout(broker, self.version_id, self.accepted_tokens)
        self.callers: dict[str, Caller] = {}
        self.full_request_headers: dict[str, list[tuple[str, str]]] = {}
        self.storage = "memory"

    async def start(self) -> None:
        """Start all listeners."""
        await self.callout.start()
        await super().start()

    async def stop(self) -> None:
        """Stop all listeners."""
        await super().stop()
        await self.callout.stop()

    async def provision(self, region: str = REGION) -> None:
        """Create stream and consumer as the WorkerService does."""
        stream, version = f"rq_{region}_{self.version_id}", self.version_id
        await self._api(
            f"$JS.API.STREAM.CREATE.{stream}",
            {
                "name": stream,
                "subjects": [f"rq.{region}.{version}.>"],
                "retention": "workqueue",
                "storage": self.storage,
                "discard": "new",
                "discard_new_per_subject": True,
                "max_msgs_per_subject": 1,
                "max_msgs": 100_000,
                "duplicate_window": 5_000_000_000,
                "allow_direct": True,
                "consumer_limits": {"max_ack_pending": 100_000},
            },
        )
        await self._api(
            f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{stream}_workers",
            {
                "stream_name": stream,
                "config": {
                    "durable_name": f"{stream}_workers",
                    "ack_policy": "explicit",
                    "deliver_policy": "all",
                    "ack_wait": int(self._ack_wait * 1e9),
                    "max_ack_pending": 100_000,
                },
            },
        )

    def message(self, call: Call, **fields: Any) -> nvcf_pb2.WorkerInvokeFunctionRequest:
        """Return the fields that every message of NVIDIA's services has."""
        message = nvcf_pb2.WorkerInvokeFunctionRequest(
            requestId=call.request_id,
            ncaId="account-1",
            subject="caller-1",
            maxDirectResponseSizeBytes=5 * 1024 * 1024,
            directResponseUrl=f"http://{self.grpc_address}",
            **fields,
        )
        message.requestTime.CopyFrom(timestamp(time.time()))
        self._configure(message.statelessConfig, call)
        self.callers[call.response_token] = Caller()
        return message

    async def call(
        self,
        body: bytes = b"",
        *,
        method: str = "POST",
        path: str = "/",
        headers: dict[str, str] | None = None,
        rest: AsyncIterable[bytes] | None = None,
        assets: Sequence[tuple[str, str]] = (),
        large_url: str = "",
        api: str | None = None,
        pass_through: bool = False,
        age: float = 0.0,
    ) -> Call:
        """Queue a request as exec, pexec or pass-through do."""
        call = self._new_call(str(uuid.uuid4()), rest, fetch=rest is not None)
        message = self.message(
            call, requestMethod=method, requestPath=path, requestBody=body, largeResponseUrl=large_url
        )
        message.requestTime.CopyFrom(timestamp(time.time() - age))
        if api is not None:
            message.directResponseUrl = api
        for asset_id, reference in assets:
            message.inputAssetReference.add(assetId=asset_id, reference=reference, contentType="text/x")
        for name, value in (headers or {}).items():
            message.requestHeaders.add(key=name.lower(), value=value)
        message.requestHeaders.add(key="nvcf-invocation-region", value=REGION)
        if pass_through:
            message.requestHeaders.add(key="nvcf-feature-disable-worker-compatibility", value="true")
        await self.queue(call, message)
        return call

    async def full_call(
        self, rest: AsyncIterable[bytes], head: Sequence[tuple[str, str]], *, pass_through: bool
    ) -> Call:
        """Queue a request whose message has only the fields for the worker."""
        call = self._new_call(str(uuid.uuid4()), rest, fetch=True)
        assert call.request_token is not None
        self.full_request_headers[call.request_token] = list(head)
        message = self.message(call, requestBody=b"")
        if pass_through:
            message.requestHeaders.add(key="nvcf-feature-disable-worker-compatibility", value="true")
        await self.queue(call, message)
        return call

    async def queue(self, call: Call, message: nvcf_pb2.WorkerInvokeFunctionRequest) -> None:
        """Publish with a trace context, as NVIDIA's services do."""
        trace = {"traceparent": f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"}
        subject = f"rq.{REGION}.{self.version_id}.{call.request_id}"
        answer = await self.connection.request(
            subject, message.SerializeToString(), timeout=10, headers=trace
        )
        assert "error" not in json.loads(answer.data), answer.data

    async def ask(self, call: Call, *, seconds: int = 20) -> Call:
        """Poll like GET of the status routes. Raises NoRespondersError if no worker subscribes."""
        poll = self._new_call(call.request_id, None, fetch=False)
        message = self.message(poll, requestMethod="GET", requestPath="/")
        message.requestHeaders.add(key="nvcf-poll-seconds", value=str(seconds))
        taken = await self.connection.request(
            f"rq_polling.{call.request_id}", message.SerializeToString(), timeout=10
        )
        assert taken.data == b""
        return poll

    def caller(self, call: Call) -> Caller:
        """Return the StatelessConfig of a call or a poll."""
        return self.callers[call.response_token]

    def forget(self, call: Call) -> None:
        """Drop the tokens of a caller that has its 504 or is gone."""
        for token in (call.response_token, call.request_token):
            self._calls.pop(token or "", None)

    # --- request-attach

    async def _get(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        head = self.full_request_headers.pop(token, None)
        call = self._take(request)
        if call is None:
            return await self._refuse(request, 401)
        call.accept.append(request.headers.get("Accept", ""))
        kind = "application/octet-stream" + ("" if head is None else "+h1")
        response = web.StreamResponse(headers={"Content-Type": kind})
        await response.prepare(request)
        if head is not None:
            lines = ["POST /some/path?a=b HTTP/1.1", *(f"{name}: {value}" for name, value in head)]
            await response.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        assert call.rest is not None
        async for chunk in call.rest:
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _post(self, request: web.Request) -> web.Response:
        call = self._take(request)
        if call is None:
            return await self._refuse(request, 401)
        caller = self.callers[call.response_token]
        assert request.headers["Content-Type"] == "application/octet-stream+h1"
        call.posts += 1
        try:
            status, headers, rest = await self._head(request)
        except ValueError as error:
            caller.posts.append(400)
            return await self._refuse(request, 400, str(error))
        if caller.left.is_set():
            caller.posts.append(500)
            return await self._refuse(request, 500, "Failed to forward response")
        call.head.set_result((status, headers))
        finished = await self._forward(request, call, caller, rest)
        caller.posts.append(200)
        if not finished:
            return await self._refuse(request, 200)
        return web.Response(status=200)

    async def _forward(self, request: web.Request, call: Call, caller: Caller, rest: bytes) -> bool:
        """Send to the caller. Returns False if it disconnected before the end."""

        async def read() -> None:
            await caller.reading.wait()
            if rest:
                await call.chunks.put(rest)
            async for chunk in request.content.iter_any():
                await caller.reading.wait()
                await call.chunks.put(chunk)
            await call.chunks.put(None)

        reading = asyncio.create_task(read())
        leaving = asyncio.create_task(caller.left.wait())
        try:
            await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
            return reading.done()
        finally:
            for task in (reading, leaving):
                task.cancel()
            await asyncio.wait((reading, leaving))

    async def _head(self, request: web.Request) -> tuple[int, dict[str, str], bytes]:
        """Parse a head. Raises ValueError where NVIDIA's parser fails."""
        buffer = b""
        while b"\r\n\r\n" not in buffer:
            chunk = await request.content.readany()
            if not chunk:
                raise ValueError("Incomplete HTTP response")
            buffer += chunk
            if len(buffer) > MAX_HEAD:
                raise ValueError("HTTP headers too large or malformed")
        head, _, rest = buffer.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        if version != "HTTP/1.1" or len(lines) > MAX_HEADERS:
            raise ValueError("Failed to parse HTTP response")
        headers = {}
        for each in lines:
            name, colon, value = each.partition(":")
            if not colon or not name or name != name.strip():
                raise ValueError("Failed to parse HTTP response")
            headers[name.lower()] = value.strip()
        if "transfer-encoding" in headers:
            raise ValueError("Transfer-Encoding in the inner response is not supported")
        return int(status), headers, rest

    async def _refuse(self, request: web.Request, status: int, detail: str = "") -> web.Response:
        """Respond without reading the rest, and close."""
        response = web.json_response({"status": status, "detail": detail}, status=status)
        response.force_close()
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            await response.write_eof()
        if request.transport is not None:
            request.transport.close()
        return response


class StrictService(WorkerService):
    """Another region's WorkerService. `asked` has the request ids of its calls."""

    def __init__(self, services: PeerServices) -> None:
        super().__init__(services)
        self.asked: list[str] = []
        self.address = ""
        self._server = grpc.aio.server()

    async def start(self) -> str:
        """Start. Returns its directResponseUrl."""
        nvcf_pb2_grpc.add_WorkerServicer_to_server(self, self._server)
        self.address = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self.address

    async def stop(self) -> None:
        """Close."""
        await self._server.stop(0)

    async def RefreshLargeUploadCredentials(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request.requestId)
        return await super().RefreshLargeUploadCredentials(request, context)

    async def RefreshAssetDownloadCredentials(self, requests: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        async for request in requests:
            self.asked.append(request.requestId)
            reference = nvcf_pb2.InputAssetReference(
                assetId=request.assetId, reference=self._gateway.store.fresh_asset_url(request.assetId)
            )
            yield nvcf_pb2.RefreshAssetDownloadCredentialsResponse(inputAssetReference=reference)
