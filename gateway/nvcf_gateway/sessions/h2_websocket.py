"""One WebSocket of an HTTP/2 caller (RFC 8441): a session of its own. The function speaks HTTP/1.1."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import secrets
from collections.abc import Callable, Iterable

import h11
from h2.errors import ErrorCodes

from nvcf_broker.wire import HALF_CLOSED_SECONDS, READ_BUFFER, Wire
from nvcf_gateway.background import end_both
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.responses import internal_error
from nvcf_gateway.sessions.h1 import H1Peer, decode_headers, function_request, request_headers
from nvcf_gateway.sessions.h2_call import H2Call
from nvcf_gateway.sessions.opening import Admission, Opened, SessionOpener, worker_left
from nvcf_gateway.sessions.routing import Header, RawHeader, encode_headers
from nvcf_proto.headers import strip_hop_by_hop

_log = logging.getLogger(__name__)

WEBSOCKET = "websocket"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# The handshake of HTTP/1.1 is between the gateway and the function.
_HANDSHAKE = frozenset(("host", "sec-websocket-key", "sec-websocket-accept", "content-length"))


def accept_key(key: str) -> str:
    """Return the Sec-WebSocket-Accept for a Sec-WebSocket-Key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()  # noqa: S324 # required by the RFC


class H2WebSocket:
    """The session of one CONNECT, in place of `H2Session`. `task` runs it."""

    def __init__(
        self, call: H2Call, admission: Admission, opener: SessionOpener, call_over: Callable[[H2Call], None]
    ) -> None:
        self._call = call
        self._admission = admission
        self._opener = opener
        self._call_over = call_over
        self._more = asyncio.Event()
        self._taken = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        call.session = self
        call.worker_id = 0

    # --- called by the `H2Call`

    def more(self, worker_id: int) -> None:
        self._more.set()

    def credit(self, worker_id: int, size: int) -> None:
        self._taken.set()

    def drop(self, call: H2Call, code: int) -> None:
        call.to_caller.drop()
        if self.task is not None:
            self.task.cancel()

    def response_sent(self, call: H2Call) -> None:
        self._call_over(call)

    async def run(self, path: str, authority: str, headers: list[Header]) -> None:
        """Serve the session from the caller's request to the end of both directions."""
        try:
            await self._serve(path, authority, headers)
        except HttpProblem as problem:
            self._call.fail(problem)
        except (h11.RemoteProtocolError, ConnectionError, TimeoutError) as error:
            _log.info("WebSocket over HTTP/2: %s", error)
            if self._call.response_started:
                self._call.give_up(ErrorCodes.CONNECT_ERROR)
            else:
                self._call.fail(worker_left())
        except Exception:  # noqa: BLE001 # logged with an id; the caller gets the id only
            self._call.fail(internal_error(_log))
        self._call_over(self._call)

    async def _serve(self, path: str, authority: str, headers: list[Header]) -> None:
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        # A request that cannot be passed on must not occupy a worker.
        self._request(path, authority, key, [])
        opened = await self._opener.open(self._admission, dict(headers))
        orderly = False
        try:
            worker = H1Peer(opened.wire, h11.CLIENT)
            await worker.send(self._request(path, authority, key, opened.additions))
            await worker.send(h11.EndOfMessage())
            orderly = await self._relay_response(worker, opened, key)
        finally:
            if orderly:
                self._opener.ended(opened)
                opened.wire.close()
            else:
                opened.wire.abort()

    def _request(self, path: str, authority: str, key: str, additions: list[Header]) -> h11.Request:
        passed = request_headers(self._admission.call, additions, WEBSOCKET)
        headers = [pair for pair in passed if pair[0].lower() not in _HANDSHAKE]
        headers += [("Host", authority), ("Sec-WebSocket-Key", key)]
        return function_request("GET", path.encode("latin-1"), headers)

    async def _relay_response(self, worker: H1Peer, opened: Opened, key: str) -> bool:
        """Pass the function's response on; return whether the session ended in order."""
        event = await worker.next()
        while isinstance(event, h11.InformationalResponse) and event.status_code != 101:
            event = await worker.next()
        if isinstance(event, h11.Response):
            await self._relay_refusal(worker, opened, event)
            return True
        if not isinstance(event, h11.InformationalResponse):
            raise worker_left()
        fields = {name.lower(): value for name, value in decode_headers(event)}
        if fields.get("sec-websocket-accept") != accept_key(key):
            raise HttpProblem(502, "the function's response to the WebSocket handshake is wrong")
        head = self._head(200, decode_headers(event), opened)
        accepted = self._admission.call.accepted
        if accepted is not None and "sec-websocket-protocol" not in fields:
            head.append((b"sec-websocket-protocol", accepted.encode("latin-1")))
        self._call.response_head(head, False)
        worker.release()
        return await self._relay(opened.wire)

    @staticmethod
    def _head(status: int, headers: Iterable[Header], opened: Opened) -> list[RawHeader]:
        kept = [pair for pair in strip_hop_by_hop(list(headers)) if pair[0].lower() != "sec-websocket-accept"]
        lowered = [(name.lower(), value) for name, value in (*kept, *opened.response_additions)]
        return [(b":status", b"%d" % status), *encode_headers(lowered)]

    async def _relay_refusal(self, worker: H1Peer, opened: Opened, event: h11.Response) -> None:
        if event.status_code < 300:
            # Over HTTP/2 such a status would mean that the WebSocket is open.
            raise HttpProblem(
                501, f"the function responded to the WebSocket handshake with {event.status_code}"
            )
        self._call.response_head(self._head(event.status_code, decode_headers(event), opened), False)
        self._call.discard_request()
        while isinstance(part := await worker.next(), h11.Data):
            await self._downward(bytes(part.data))
        if not isinstance(part, h11.EndOfMessage):
            raise ConnectionResetError("the function closed the connection")
        self._call.response_end(None)

    # --- the open WebSocket

    async def _relay(self, wire: Wire) -> bool:
        """Pass bytes in both directions; return whether the function ended first, as it should."""
        upward = asyncio.create_task(self._pass_upward(wire))
        downward = asyncio.create_task(self._pass_downward(wire))
        try:
            await asyncio.wait({upward, downward}, return_when=asyncio.FIRST_COMPLETED)
            function_first = downward.done()
            if not function_first:
                upward.result()
                async with asyncio.timeout(HALF_CLOSED_SECONDS):
                    await asyncio.wait({downward})
            downward.result()
        finally:
            await end_both(upward, downward)
        self._call.discard_request()
        self._call.response_end(None)
        return function_first

    async def _pass_upward(self, wire: Wire) -> None:
        waiting = self._call.to_worker
        while True:
            self._more.clear()
            while waiting.chunks:
                chunk = waiting.chunks.popleft()
                waiting.size -= len(chunk)
                wire.write(bytes(chunk))
                try:
                    await wire.drain()
                finally:
                    # The connection's window belongs to other calls too, so return the credit in any case.
                    waiting.credit(len(chunk))
            if waiting.ended:
                waiting.finished = True
                wire.write_eof()
                return
            await self._more.wait()

    async def _pass_downward(self, wire: Wire) -> None:
        while data := await wire.read():
            await self._downward(data)

    async def _downward(self, data: bytes) -> None:
        """Send bytes to the caller at its pace."""
        self._call.response_data(data)
        while self._call.to_caller.size > READ_BUFFER:
            self._taken.clear()
            await self._taken.wait()
