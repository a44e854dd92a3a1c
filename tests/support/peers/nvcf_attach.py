"""Request bodies and responses as NVIDIA's worker carries them: request-attach, and a NATS inbox."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nvcf_proto.pb import nvcf_pb2
from tests.support.peers.nvcf_http import Answer, GoClient
from tests.support.peers.worker import ATTACH, H1

Request = nvcf_pb2.WorkerInvokeFunctionRequest


@dataclass
class Seen:
    """A request to the function, with lower-case header names. The worker uses `poll_seconds`."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    poll_seconds: int


@dataclass
class Reply:
    """A response of the function. `chunks` is a body of unknown length."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: AsyncIterator[bytes] | None = None


Function = Callable[[Seen], Awaitable[Reply]]


class Inbox:
    """Messages of a subject. `next_msg` of nats-py may swallow a cancellation on Python 3.11."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Msg] = asyncio.Queue()
        self._subscription: Subscription

    @classmethod
    async def open(cls, client: Client, subject: str) -> Inbox:
        """Subscribe."""
        inbox = cls()
        inbox._subscription = await client.subscribe(subject, cb=inbox._keep)
        return inbox

    async def _keep(self, message: Msg) -> None:
        self._arrived.put_nowait(message)

    async def next(self, timeout: float) -> Msg:
        """Return the next message. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            return await self._arrived.get()

    async def close(self) -> None:
        """Unsubscribe."""
        with contextlib.suppress(Exception):
            await self._subscription.unsubscribe()


class AlreadySent(Exception):
    """A second POST with one token."""


class Attachment:
    """GET and POST of one StatelessConfig."""

    def __init__(self, http: GoClient, config: nvcf_pb2.StatelessConfig, request: Request) -> None:
        connection = config.connectionConfigs[0].http1Config
        self.http = http
        self.url = connection.targetURI + ATTACH
        self.token = connection.responseAuthorizationToken
        self.sent = False
        self.got: asyncio.Task[Answer] | None = None
        if connection.requestAuthorizationToken:
            headers = {
                "Authorization": f"Bearer {connection.requestAuthorizationToken}",
                "Accept": H1 if not request.requestMethod else "application/octet-stream",
            }
            self.got = asyncio.create_task(self._get(headers))

    async def _get(self, headers: dict[str, str]) -> Answer:
        async with asyncio.timeout(5):
            answer = await self.http.get(self.url, headers)
        if answer.status != 200:
            raise AssertionError(f"GET attach: {answer.status}")
        return answer

    async def rest(self) -> bytes:
        """Return the rest after the inlined body."""
        if self.got is None:
            return b""
        return b"".join([data async for data in (await self.got).stream()])

    async def post(self, reply: Reply) -> Answer:
        """Send the response, only once."""
        if self.sent:
            raise AlreadySent
        self.sent = True
        phrase = HTTPStatus(reply.status).phrase
        length = None if reply.chunks is not None else len(reply.body)
        headers = dict(reply.headers)
        if length is not None:
            headers.setdefault("Content-Length", str(length))
        lines = [
            f"HTTP/1.1 {reply.status:03d} {phrase}",
            *(f"{name}: {headers[name]}" for name in sorted(headers)),
        ]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        sent = {
            "Authorization": f"Bearer {self.token}",
            "Content-Type": H1,
            "Traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
        }
        total = None if length is None else len(head) + length
        answer = await self.http.send("POST", self.url, sent, head + reply.body, reply.chunks, total)
        if answer.status != 200:
            raise ConnectionError(f"POST attach: {answer.status} {answer.body.decode()}")
        return answer


def problem(source: str, status: int, detail: str) -> Reply:
    """Return a problem of the worker itself."""
    phrase = HTTPStatus(status).phrase
    kind = f"urn:{source}:problem-details:{phrase.lower().replace(' ', '-')}"
    body = json.dumps({"type": kind, "title": phrase, "status": status, "detail": detail}).encode()
    return Reply(status, {"Content-Type": "application/problem+json"}, body)
