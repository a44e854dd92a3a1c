"""A minimal worker written from protocol.md alone: raw gRPC, NATS and HTTP, none of nvcf_worker."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import grpc.aio
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.platform.gateways import Gateway, Platform, Version

ATTACH = "/v2/nvcf/worker/request-attach"
H1 = "application/octet-stream+h1"


def broker_token(worker_token: str) -> str:
    """Return the unpadded base64url of a JSON object (protocol.md, section 2.1)."""
    text = json.dumps({"account": "Worker", "pluginName": "webhook", "payload": worker_token})
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


async def connect_once(
    address: str, token: str | None, instance_id: str, function_id: str, version_id: str
) -> nvcf_pb2.WorkerConnectOnceResponse:
    """Call Worker.ConnectOnce. Raises grpc.aio.AioRpcError."""
    metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
    async with grpc.aio.insecure_channel(address) as channel:
        stub: nvcf_pb2_grpc.WorkerAsyncStub = nvcf_pb2_grpc.WorkerStub(channel)
        return await stub.ConnectOnce(
            nvcf_pb2.WorkerConnect(
                instanceId=instance_id, functionId=function_id, functionVersionId=version_id
            ),
            metadata=metadata,
            timeout=10,
        )


@dataclass
class Work:
    """One pulled request."""

    message: Msg
    request: nvcf_pb2.WorkerInvokeFunctionRequest
    session: aiohttp.ClientSession
    client: Client

    @property
    def headers(self) -> dict[str, str]:
        """Return the request headers with lower-case names."""
        return {pair.key.lower(): pair.value for pair in self.request.requestHeaders}

    @property
    def connection(self) -> nvcf_pb2.StatelessConfig.HTTP1ProtocolConfig:
        """Return the connection for request-attach."""
        return self.request.statelessConfig.connectionConfigs[0].http1Config

    async def post(
        self, data: bytes | AsyncIterator[bytes], *, token: str | None = None, content_type: str = H1
    ) -> tuple[int, bytes]:
        """POST to request-attach. Returns status and body."""
        async with self.session.post(
            self.connection.targetURI + ATTACH,
            data=data,
            headers={
                "Authorization": f"Bearer {token or self.connection.responseAuthorizationToken}",
                "Content-Type": content_type,
            },
        ) as response:
            return response.status, await response.read()

    async def get(
        self,
        *,
        accept: str = "application/octet-stream",
        token: str | None = None,
        attempt: int | None = None,
    ) -> tuple[int, str, bytes]:
        """GET request-attach. Returns status, content type and body."""
        headers = {
            "Authorization": f"Bearer {token or self.connection.requestAuthorizationToken}",
            "Accept": accept,
        }
        if attempt is not None:
            headers["Nvcf-Delivery-Attempt"] = str(attempt)
        async with self.session.get(self.connection.targetURI + ATTACH, headers=headers) as response:
            return response.status, response.headers.get("Content-Type", ""), await response.read()

    async def inline(self, response: nvcf_pb2.InlineResponse | bytes) -> Msg:
        """[ext] Respond over the broker. Returns the gateway's acknowledgement."""
        assert self.message.headers is not None
        data = response if isinstance(response, bytes) else response.SerializeToString()
        return await self.client.request(self.message.headers["Nvcf-Reply-Subject"], data, timeout=5)

    async def ack(self) -> None:
        """Acknowledge the request."""
        await self.message.ack()

    async def answer(self, body: bytes = b"ok", status: str = "200 OK", *headers: str) -> tuple[int, bytes]:
        """Deliver a complete response by POST, and acknowledge the request."""
        head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers))
        result = await self.post(head.encode("latin-1") + b"\r\n" + body)
        await self.ack()
        return result


@dataclass
class PeerWorker:
    """A connected worker without a handler: tests pull requests and respond to them."""

    client: Client
    session: aiohttp.ClientSession
    version: Version
    instance_id: str
    connected: nvcf_pb2.WorkerConnectOnceResponse
    platform: Platform

    @property
    def stream(self) -> str:
        """Return the name of the version's request stream."""
        return f"rq_{self.connected.connectedRegion}_{self.version.id}"

    async def pull(self, expires: float = 20.0) -> Work:
        """Return the next request. Raises AssertionError if none arrives in time."""
        inbox = self.client.new_inbox()
        subscription = await self.client.subscribe(inbox)
        body = {"batch": 1, "expires": int(expires * 1e9)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{self.stream}_workers"
        await self.client.publish(subject, json.dumps(body).encode(), reply=inbox)
        message = await subscription.next_msg(timeout=expires + 2)
        await subscription.unsubscribe()
        status = (message.headers or {}).get("Status")
        assert status is None, f"no request came: {message.headers}"
        request = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(message.data)
        return Work(message, request, self.session, self.client)


@contextlib.asynccontextmanager
async def peer_worker(
    platform: Platform, version: Version, *, gateway: Gateway | None = None
) -> AsyncIterator[PeerWorker]:
    """Connect a worker as in protocol.md, sections 2.1 and 5.2."""
    instance = new_id()
    token = await platform.worker_token(version, instance)
    connected = await connect_once(
        (gateway or platform.gateway).grpc, token, instance, version.function_id, version.id
    )
    client = Client()
    await client.connect(
        platform.broker.url.split(","),
        token=broker_token(connected.nvcfWorkerToken),
        name=f"worker_{version.id}_{instance}",
        inbox_prefix=f"_INBOX.{version.id}.{instance}",
        allow_reconnect=False,
    )
    try:
        yield PeerWorker(client, platform.session, version, instance, connected, platform)
    finally:
        await client.close()
