"""The door workers dial back to: HTTP/1.1 CONNECT, then raw bytes (protocol.md section 7)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from multidict import CIMultiDict

from nvcf_broker.wire import Wire
from nvcf_gateway.access.authorization import bearer_token
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.sessions.worker_links import LinkTable
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


def connect_target(head: RequestHead) -> None:
    """Check the request line: CONNECT with the path, or with an authority as in RFC 9110 section 9.3.6.

    Raises HttpProblem 404 and 405.
    """
    if head.method != "CONNECT":
        raise HttpProblem(405, "workers dial with CONNECT", headers={"Allow": "CONNECT"})
    path = head.target
    if "://" in path:
        path = "/" + path.split("://", 1)[1].partition("/")[2]
    if path.startswith("/") and path.split("?", 1)[0] != TUNNEL_PATH:
        raise HttpProblem(404, f"workers dial to {TUNNEL_PATH}")


def claimed_ids(head: RequestHead) -> tuple[str, str]:
    """Token and request id of a CONNECT. Raises HttpProblem 401 (no token) and 400 (no or no good id)."""
    headers = CIMultiDict(head.headers)
    token = bearer_token(headers)
    text = headers.get(_REQUEST_ID)
    if text is None:
        raise HttpProblem(400, f"header {_REQUEST_ID} is missing")
    try:
        return token, parse_id(text.strip(), f"header {_REQUEST_ID}")
    except InvalidId as error:
        raise HttpProblem(400, str(error)) from None


def told_error(headers: Iterable[tuple[str, str]]) -> HttpProblem | None:
    """[ext] Why the worker cannot serve the session: header `Nvcf-Tunnel-Error: STATUS TEXT`."""
    text = CIMultiDict(headers).get(TUNNEL_ERROR)
    if text is None:
        return None
    status, _, detail = text.partition(" ")
    known = status.isascii() and status.isdigit() and 400 <= int(status) <= 599
    return HttpProblem(int(status) if known else 502, detail or "the worker cannot serve the session")


class ProxyDoor:
    """Takes workers' links and hands them to those who wait."""

    def __init__(self, links: LinkTable) -> None:
        self._links = links

    async def serve(self, wire: Wire) -> None:
        """One connection: until its link is handed over, or refused."""
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head, rest = await self._head(wire)
            self._take(wire, head, rest)
        except HttpProblem as problem:
            _log.info("worker link refused: %s", problem)
            wire.write(refusal(problem))
            wire.close()
        except (TimeoutError, ConnectionError):
            wire.abort()

    async def _head(self, wire: Wire) -> tuple[RequestHead, bytes]:
        decoder = RequestDecoder(_HEAD_BYTES, _MAX_HEADERS)
        while True:
            data = await wire.read()
            if not data:
                raise ConnectionResetError("ended before its head")
            try:
                parts = decoder.feed(data)
            except H1Error as error:
                raise HttpProblem(400, str(error)) from None
            if parts:
                head = parts[0]
                assert isinstance(head, RequestHead)  # noqa: S101 # the decoder gives the head first
                return head, b"".join(part for part in parts[1:] if isinstance(part, bytes))

    def _take(self, wire: Wire, head: RequestHead, rest: bytes) -> None:
        connect_target(head)
        token, request_id = claimed_ids(head)
        expected = self._links.claim(token, request_id)
        if expected is None:
            raise HttpProblem(403, "the token is unknown, expired, used or belongs to another request")
        problem = told_error(head.headers)
        wire.write(encode_response_head(200, [], "Connection Established"))
        if problem is not None:
            expected.refuse(problem)
            wire.close()
            return
        wire.unread(rest)
        if not expected.deliver(wire):
            wire.close()


def refusal(problem: HttpProblem) -> bytes:
    """A complete HTTP/1.1 answer that closes the connection."""
    body = problem.problem.to_json()
    headers = [
        ("Content-Type", PROBLEM_JSON),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        *problem.headers.items(),
    ]
    return encode_response_head(problem.status, headers) + body
