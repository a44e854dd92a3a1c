"""Tunnels from workers: HTTP/1.1 CONNECT with a token, then raw bytes (protocol.md, section 7.3)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from multidict import CIMultiDict

from nvcf_broker.wire import Wire
from nvcf_gateway.access.authorization import bearer_token
from nvcf_gateway.errors import HttpProblem
from nvcf_proto.errors import InvalidId
from nvcf_proto.h1 import H1Error, RequestDecoder, RequestHead, encode_response_head
from nvcf_proto.headers import PROBLEM_JSON, TUNNEL_ERROR
from nvcf_proto.ids import parse_id
from nvcf_proto.settings import TUNNEL_PATH

_log = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
_HEAD_BYTES = 16 * 1024
_MAX_HEADERS = 64
_REQUEST_ID = "X-Request-ID"


@dataclass(eq=False)
class ExpectedTunnel:
    """A tunnel that a session waits for. The token is good once, and only for this request id."""

    request_id: str
    token: str
    wire: asyncio.Future[Wire]
    taken: bool = False

    async def wait(self) -> Wire:
        """Wait for the tunnel. Raises the HttpProblem with which the worker refused."""
        wire = await self.wire
        self.taken = True
        return wire

    def deliver(self, wire: Wire) -> bool:
        """Hand a worker's tunnel over; return False when the session no longer waits."""
        if self.wire.done():
            return False
        self.wire.set_result(wire)
        return True

    def refuse(self, problem: HttpProblem) -> None:
        """[ext] Pass on that the worker cannot serve the session."""
        if not self.wire.done():
            self.wire.set_exception(problem)


class TunnelTable:
    """All tunnels that this replica waits for."""

    def __init__(self) -> None:
        self._expected: dict[str, ExpectedTunnel] = {}

    @contextlib.contextmanager
    def expect(self, request_id: str) -> Iterator[ExpectedTunnel]:
        """Let a worker connect for `request_id` while the context lasts."""
        token = secrets.token_urlsafe(32)
        expected = ExpectedTunnel(request_id, token, asyncio.get_running_loop().create_future())
        self._expected[token] = expected
        try:
            yield expected
        finally:
            self._expected.pop(token, None)
            wire = expected.wire
            if not wire.done():
                wire.cancel()
            # Always read the exception: a refusal that nobody waited for must not be logged as unhandled.
            elif not wire.cancelled() and wire.exception() is None and not expected.taken:
                wire.result().abort()

    def claim(self, token: str, request_id: str) -> ExpectedTunnel | None:
        """Use a token up. Return None when it is unknown, expired, used or for another request."""
        expected = self._expected.get(token)
        if expected is None or expected.request_id != request_id:
            return None
        del self._expected[token]
        return expected


class TunnelEndpoint:
    """Accepts tunnels from workers and hands them to the sessions that wait."""

    def __init__(self, tunnels: TunnelTable) -> None:
        self._tunnels = tunnels

    async def serve(self, wire: Wire) -> None:
        """Serve one connection until its tunnel is handed over or refused."""
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head, rest = await self._head(wire)
            self._accept(wire, head, rest)
        except HttpProblem as problem:
            _log.info("tunnel refused: %s", problem)
            wire.write(refusal(problem))
            wire.close()
        except (TimeoutError, ConnectionError):
            wire.abort()

    async def _head(self, wire: Wire) -> tuple[RequestHead, bytes]:
        decoder = RequestDecoder(_HEAD_BYTES, _MAX_HEADERS)
        while True:
            data = await wire.read()
            if not data:
                raise ConnectionResetError("the connection ended before its head")
            try:
                parts = decoder.feed(data)
            except H1Error as error:
                raise HttpProblem(400, str(error)) from None
            if parts:
                head = parts[0]
                assert isinstance(head, RequestHead)  # noqa: S101 # the decoder returns the head first
                return head, b"".join(part for part in parts[1:] if isinstance(part, bytes))

    def _accept(self, wire: Wire, head: RequestHead, rest: bytes) -> None:
        check_target(head)
        token, request_id = read_credentials(head)
        expected = self._tunnels.claim(token, request_id)
        if expected is None:
            raise HttpProblem(403, "the token is unknown, expired, used or belongs to another request")
        wire.trusted = True
        problem = tunnel_error(head.headers)
        wire.write(encode_response_head(200, [], "Connection Established"))
        if problem is not None:
            expected.refuse(problem)
            wire.close()
            return
        wire.unread(rest)
        if not expected.deliver(wire):
            wire.close()


def check_target(head: RequestHead) -> None:
    """Check the request line: CONNECT with the path, or with an authority as in RFC 9110 section 9.3.6.

    Raises HttpProblem 404 and 405.
    """
    if head.method != "CONNECT":
        raise HttpProblem(405, "workers connect with CONNECT", headers={"Allow": "CONNECT"})
    path = head.target
    if "://" in path:
        path = "/" + path.split("://", 1)[1].partition("/")[2]
    if path.startswith("/") and path.split("?", 1)[0] != TUNNEL_PATH:
        raise HttpProblem(404, f"workers connect to {TUNNEL_PATH}")


def read_credentials(head: RequestHead) -> tuple[str, str]:
    """Return token and request id of a CONNECT. Raises HttpProblem 401 (no token) and 400 (no valid id)."""
    headers = CIMultiDict(head.headers)
    token = bearer_token(headers)
    text = headers.get(_REQUEST_ID)
    if text is None:
        raise HttpProblem(400, f"header {_REQUEST_ID} is missing")
    try:
        return token, parse_id(text.strip(), f"header {_REQUEST_ID}")
    except InvalidId as error:
        raise HttpProblem(400, str(error)) from None


def tunnel_error(headers: Iterable[tuple[str, str]]) -> HttpProblem | None:
    """[ext] Return why the worker cannot serve the session: header `Nvcf-Tunnel-Error: STATUS TEXT`."""
    text = CIMultiDict(headers).get(TUNNEL_ERROR)
    if text is None:
        return None
    status, _, detail = text.partition(" ")
    known = status.isascii() and status.isdigit() and 400 <= int(status) <= 599
    return HttpProblem(int(status) if known else 502, detail or "the worker cannot serve the session")


def refusal(problem: HttpProblem) -> bytes:
    """Return a complete HTTP/1.1 response that closes the connection."""
    body = problem.problem.to_json()
    headers = [
        ("Content-Type", PROBLEM_JSON),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        *problem.headers.items(),
    ]
    return encode_response_head(problem.status, headers) + body
