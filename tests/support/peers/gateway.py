"""A minimal invocation service, written from protocol.md alone, to test the worker against.

It shares nothing with this project's gateway but the generated messages; names and formats are
spelled out here a second time on purpose.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
import nats
from aiohttp import web
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.peers.calls import BrokenResponse, Call
from tests.support.peers.store import PeerStore
from tests.support.peers.worker_service import WorkerService, timestamp

REGION = "local"
WAIT = 20.0


class PeerGateway:
    """Queues requests, serves ConnectOnce, ProvisionRegionalWorker and request-attach."""

    def __init__(self, nats_url: str, *, ack_wait: float = 30.0) -> None:
        self._nats_url = nats_url
        self._ack_wait = ack_wait
        self.version_id = str(uuid.uuid4())
        self.function_id = str(uuid.uuid4())
        self.regions = [REGION]
        self.token = f"token-{uuid.uuid4()}"
        self.accepted_tokens = {self.token}
        self.token_life = 10_800.0
        self.connects: list[str] = []
        self.provisions: list[str] = []
        self.refusal: grpc.StatusCode | None = None
        self.refused = 0
        self.connect_answer: Callable[[nvcf_pb2.WorkerConnectOnceResponse], None] | None = None
        self.inline = "answer"
        self.fail_posts = 0
        self.overlook_posts = 0
        self.rescue = "silent"
        self.lookups = 0
        self.rescued: list[Call] = []
        self.lost: list[Call] = []
        self.store = PeerStore()
        self.grpc_address = ""
        self.http_url = ""
        self._calls: dict[str, Call] = {}
        self._posts: list[web.Request] = []
        self._inline: dict[str, Call] = {}
        self._id = uuid.uuid4().hex
        self.connection: Client
        self._grpc: grpc.aio.Server
        self._http: web.AppRunner

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all listeners."""
        self.connection = await nats.connect(
            self._nats_url, max_reconnect_attempts=-1, reconnect_time_wait=1, error_cb=_ignore
        )
        self._inline_subscription = await self.connection.subscribe(
            f"nvcf.reply.{self._id}.*", cb=self._on_inline
        )
        await self.connection.subscribe(f"nvcf.attach.{self.version_id}", cb=self._on_rescue)
        self._grpc = grpc.aio.server()
        nvcf_pb2_grpc.add_WorkerServicer_to_server(WorkerService(self), self._grpc)  # type: ignore[abstract] # unserved calls answer UNIMPLEMENTED
        self.grpc_address = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        await self._grpc.start()
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_get("/v2/nvcf/worker/request-attach", self._get)
        application.router.add_post("/v2/nvcf/worker/request-attach", self._post)
        self.store.add_routes(application)
        self._http = web.AppRunner(application, shutdown_timeout=0.1)
        await self._http.setup()
        site = web.TCPSite(self._http, "127.0.0.1", 0)
        await site.start()
        self.http_url = self.store.url = f"http://127.0.0.1:{self._http.addresses[0][1]}"

    async def stop_inline(self) -> None:
        """Stop responding to inline replies, like a peer that does not know them."""
        await self._inline_subscription.unsubscribe()

    async def stop(self) -> None:
        """Stop all listeners."""
        await self._grpc.stop(0)
        await self._http.cleanup()
        await self.connection.close()

    # --- NATS ------------------------------------------------------------------------------------

    async def provision(self, region: str = REGION) -> None:
        """Create stream and consumer of the version."""
        stream, version = f"rq_{region}_{self.version_id}", self.version_id
        await self._api(
            f"$JS.API.STREAM.CREATE.{stream}",
            {
                "name": stream,
                "subjects": [f"rq.{region}.{version}.>"],
                "retention": "workqueue",
                "storage": "file",
                "discard": "new",
                "discard_new_per_subject": True,
                "max_msgs_per_subject": 1,
                "max_msgs": 100_000,
                "max_msg_size": 6 * 1024 * 1024,
                "duplicate_window": 5_000_000_000,
                "allow_direct": True,
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
                    "max_deliver": 5,
                    "max_ack_pending": 100_000,
                },
            },
        )

    async def _api(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        message = await self.connection.request(subject, json.dumps(body).encode(), timeout=10)
        answer: dict[str, Any] = json.loads(message.data)
        assert "error" not in answer, answer
        return answer

    async def consumer(self, region: str = REGION) -> dict[str, Any]:
        """Return the state of the consumer."""
        stream = f"rq_{region}_{self.version_id}"
        return await self._api(f"$JS.API.CONSUMER.INFO.{stream}.{stream}_workers", {})

    async def delete_consumer(self, region: str = REGION) -> None:
        """Change the consumer as an operator might."""
        stream = f"rq_{region}_{self.version_id}"
        await self._api(f"$JS.API.CONSUMER.DELETE.{stream}.{stream}_workers", {})

    async def queued(self, region: str = REGION) -> int:
        """Return the number of messages in the stream, including those in flight."""
        stream = f"rq_{region}_{self.version_id}"
        answer = await self._api(f"$JS.API.STREAM.INFO.{stream}", {})
        return int(answer["state"]["messages"])

    async def publish_raw(self, data: bytes, region: str = REGION) -> None:
        """Publish any bytes to the request stream."""
        subject = f"rq.{region}.{self.version_id}.{uuid.uuid4()}"
        answer = json.loads((await self.connection.request(subject, data, timeout=10)).data)
        assert "error" not in answer, answer

    async def cancel(self, call: Call) -> None:
        """Announce that the caller is gone, and drop its tokens."""
        self._calls = {token: known for token, known in self._calls.items() if known is not call}
        self._inline = {token: known for token, known in self._inline.items() if known is not call}
        await self.connection.publish(f"nvcf.cancel.{self.version_id}", call.request_id.encode())

    async def invoke(
        self,
        body: bytes = b"",
        *,
        method: str = "POST",
        path: str = "/",
        headers: dict[str, str] | None = None,
        rest: AsyncIterable[bytes] | None = None,
        reply_max_bytes: int | None = 262_144,
        full: bool = False,
        region: str = REGION,
        trace: str | None = None,
        proxy: str | None = None,
        forget: bool = False,
        assets: Sequence[tuple[str, str]] = (),
        large: bool = False,
        age: float = 0.0,
        kept: bool = False,
    ) -> Call:
        """Queue a request.

        `rest` is fetched by GET attach; `full` leaves request line and headers to it as well; `forget`
        drops the tokens at once; `assets` are pairs of id and address; with `large` the message names
        where large results go; `age`: how many seconds ago the caller came; `kept`: it may come back.
        """
        call = self._new_call(str(uuid.uuid4()), rest, fetch=rest is not None or full)
        message = nvcf_pb2.WorkerInvokeFunctionRequest(
            requestId=call.request_id,
            ncaId="account-1",
            subject="caller-1",
            maxDirectResponseSizeBytes=5_242_880,
        )
        message.requestTime.CopyFrom(timestamp(time.time() - age))
        for asset_id, reference in assets:
            message.inputAssetReference.add(assetId=asset_id, reference=reference, contentType="text/x")
        if large:
            message.largeResponseUrl = self.store.upload_url(call.request_id)
        if not full:
            message.requestMethod, message.requestPath, message.requestBody = method, path, body
            for name, value in (headers or {}).items():
                message.requestHeaders.add(key=name, value=value)
        self._configure(message.statelessConfig, call)
        if proxy is not None:
            message.statelessConfig.connectionConfigs[0].http1Config.proxyURI = proxy
        if forget:
            self._calls.clear()
        nats_headers = {} if trace is None else {"traceparent": trace}
        nats_headers |= self._reply_headers(call, reply_max_bytes)
        if kept:
            nats_headers["Nvcf-Kept"] = "true"
        subject = f"rq.{region}.{self.version_id}.{call.request_id}"
        answer = await self.connection.request(
            subject, message.SerializeToString(), timeout=10, headers=nats_headers or None
        )
        assert "error" not in json.loads(answer.data), answer.data
        return call

    def _new_call(self, request_id: str, rest: AsyncIterable[bytes] | None, *, fetch: bool) -> Call:
        call = Call(
            request_id=request_id,
            response_token=str(uuid.uuid4()),
            request_token=str(uuid.uuid4()) if fetch else None,
            rest=rest,
            head=asyncio.get_running_loop().create_future(),
        )
        self._calls[call.response_token] = call
        if call.request_token is not None:
            self._calls[call.request_token] = call
        return call

    def _configure(self, config: nvcf_pb2.StatelessConfig, call: Call) -> None:
        http1 = config.connectionConfigs.add().http1Config
        http1.targetURI, http1.responseAuthorizationToken = self.http_url, call.response_token
        if call.request_token is not None:
            http1.requestAuthorizationToken = call.request_token

    def _reply_headers(self, call: Call, limit: int | None) -> dict[str, str]:
        if limit is None:
            return {}
        token = uuid.uuid4().hex
        self._inline[token] = call
        return {
            "Nvcf-Reply-Subject": f"nvcf.reply.{self._id}.{token}",
            "Nvcf-Reply-Max-Bytes": str(limit),
        }

    async def poll(
        self, call: Call, *, seconds: int = 20, plain: bool = False, reply_max_bytes: int | None = 262_144
    ) -> Call:
        """Poll an earlier call that the worker has in flight.

        `plain`: on the contract's subject and without inline reply, as a peer asks.
        """
        poll = self._new_call(call.request_id, None, fetch=False)
        message = nvcf_pb2.WorkerInvokeFunctionRequest(
            requestId=call.request_id, requestMethod="GET", requestPath="/"
        )
        message.requestTime.CopyFrom(timestamp(time.time()))
        message.requestHeaders.add(key="NVCF-POLL-SECONDS", value=str(seconds))
        self._configure(message.statelessConfig, poll)
        space = "" if plain else f"{self.version_id}."
        answer = await self.connection.request(
            f"rq_polling.{space}{call.request_id}",
            message.SerializeToString(),
            timeout=5,
            headers=self._reply_headers(poll, None if plain else reply_max_bytes) or None,
        )
        assert answer.data == b""
        return poll

    async def _on_rescue(self, message: Msg) -> None:
        self.lookups += 1
        if self.rescue == "silent":
            return
        if self.rescue == "gone":
            await self.connection.publish(message.reply, b"", headers={"Nvcf-Reply-Status": "410"})
            return
        lost = next((call for call in self.lost if call.request_id == message.data.decode()), None)
        rest = None if lost is None else lost.rest
        call = self._new_call(message.data.decode(), rest, fetch=rest is not None)
        config = nvcf_pb2.StatelessConfig()
        self._configure(config, call)
        self.rescued.append(call)
        headers = self._reply_headers(call, 262_144)
        await self.connection.publish(message.reply, config.SerializeToString(), headers=headers)

    async def _on_inline(self, message: Msg) -> None:
        if self.inline == "silent":
            return
        call = self._inline.pop(message.subject.rpartition(".")[2], None)
        if call is None or self.inline == "gone":
            await self.connection.publish(message.reply, b"", headers={"Nvcf-Reply-Status": "410"})
            return
        response = nvcf_pb2.InlineResponse.FromString(message.data)
        assert response.endOfResponse
        self._calls.pop(call.response_token, None)
        call.via.append("inline")
        if not call.head.done():
            headers = {pair.key.lower(): pair.value for pair in response.headers}
            call.head.set_result((response.httpStatusCode or 200, headers))
        await self.connection.publish(message.reply, b"")
        if response.body:
            await call.chunks.put(response.body)
        self._tail = asyncio.create_task(call.chunks.put(None))

    # --- request-attach --------------------------------------------------------------------------

    def _take(self, request: web.Request) -> Call | None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self._calls.pop(token, None)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        call = self._take(request)
        if call is None:
            return web.Response(status=401)
        accept = request.headers.get("Accept", "")
        call.accept.append(accept)
        call.attempts.append(request.headers.get("Nvcf-Delivery-Attempt", ""))
        response = web.StreamResponse(headers={"Content-Type": accept})
        await response.prepare(request)
        if call.rest is not None:
            async for chunk in call.rest:
                await response.write(chunk)
        await response.write_eof()
        return response

    async def _post(self, request: web.Request) -> web.Response:
        if self.fail_posts > 0:
            self.fail_posts -= 1
            return web.Response(status=503)
        if self.overlook_posts > 0:
            self.overlook_posts -= 1
            # Like a gateway that is too busy to read before the worker closes the connection.
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.01)
            return web.Response(status=503)
        call = self._take(request)
        if call is None:
            return web.Response(status=401)
        call.posts += 1
        assert request.headers["Content-Type"] == "application/octet-stream+h1"
        call.via.append("attach")
        self._posts.append(request)
        try:
            await self._read_response(request, call)
        except Exception as error:  # noqa: BLE001 - whatever breaks the body
            broken = BrokenResponse(repr(error))
            if not call.head.done():
                call.head.set_exception(broken)
            await call.chunks.put(broken)
            return web.Response(status=400)
        finally:
            self._posts.remove(request)
        await call.chunks.put(None)
        return web.Response(status=200)

    def drop_posts(self) -> None:
        """Close the connections of all responses in flight."""
        for request in tuple(self._posts):
            if request.transport is not None:
                request.transport.close()

    async def _read_response(self, request: web.Request, call: Call) -> None:
        buffer = b""
        while b"\r\n\r\n" not in buffer:
            chunk = await request.content.readany()
            assert chunk, "no head"
            buffer += chunk
        head, _, rest = buffer.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        call.head.set_result((int(status), headers))
        if rest:
            await call.chunks.put(rest)
        async for chunk in request.content.iter_any():
            await call.chunks.put(chunk)


async def _ignore(_: Exception) -> None:
    return None
