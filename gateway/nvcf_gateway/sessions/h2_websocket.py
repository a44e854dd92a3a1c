"""One WebSocket of an HTTP/2 caller (RFC 8441): a session of its own, whose function speaks HTTP/1.1."""

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
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.owner import end_both
from nvcf_gateway.sessions.failures import worker_left
from nvcf_gateway.sessions.h1_caller import request_headers
from nvcf_gateway.sessions.h1_side import H1Side, raw, text
from nvcf_gateway.sessions.h2_call import Call
from nvcf_gateway.sessions.h2_parts import RawHeader
from nvcf_gateway.sessions.opening import Admission, Opened, SessionOpener
from nvcf_gateway.sessions.routing import response_additions
from nvcf_proto.headers import strip_hop_by_hop
from nvcf_proto.ids import new_id

_log = logging.getLogger(__name__)

WEBSOCKET = "websocket"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# HTTP/1.1's proof that the function speaks WebSocket is between the gateway and the function.
_HANDSHAKE = frozenset(("host", "sec-websocket-key", "sec-websocket-accept", "content-length"))

Header = tuple[str, str]


def accept_of(key: str) -> str:
    """The Sec-WebSocket-Accept that belongs to a Sec-WebSocket-Key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()  # noqa: S324 # as the RFC says


class H2Socket:
    """Stands where `H2Session` stands for other calls, for the stream of one CONNECT. `task` runs it."""

    def __init__(
        self, call: Call, admission: Admission, opener: SessionOpener, call_over: Callable[[Call], None]
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

    # --- what a call tells its session

    def more(self, worker_id: int) -> None:
        """The caller has sent something."""
        self._more.set()

    def credit(self, worker_id: int, size: int) -> None:
        """The caller has taken `size` bytes."""
        self._taken.set()

    def drop(self, call: Call, code: int) -> None:
        """The caller gave it up."""
        call.to_caller.drop()
        if self.task is not None:
            self.task.cancel()

    def response_sent(self, call: Call) -> None:
        """The caller has everything."""
        self._call_over(call)

    # --- its life

    async def run(self, path: str, authority: str, headers: list[Header]) -> None:
        """From the caller's request to the end of both directions."""
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
        except Exception:  # noqa: BLE001 # told to the log with an id, and to the caller without its insides
            identifier = new_id()
            _log.exception("internal error", extra={"error_id": identifier})
            self._call.fail(HttpProblem(500, f"internal error {identifier}"))
        self._call_over(self._call)

    async def _serve(self, path: str, authority: str, headers: list[Header]) -> None:
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        # What cannot be passed on is not worth a worker's time.
        self._request(path, authority, key, [])
        opened = await self._opener.open(self._admission, dict(headers))
        orderly = False
        try:
            worker = H1Side(opened.wire, h11.CLIENT)
            await worker.send(self._request(path, authority, key, opened.additions))
            await worker.send(h11.EndOfMessage())
            orderly = await self._answer(worker, opened, key)
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
        try:
            return h11.Request(method="GET", target=path.encode("latin-1"), headers=raw(headers))
        except h11.LocalProtocolError as error:
            raise HttpProblem(400, str(error)) from None

    async def _answer(self, worker: H1Side, opened: Opened, key: str) -> bool:
        """Pass the function's answer on; whether the session has ended as it should."""
        event = await worker.next()
        while isinstance(event, h11.InformationalResponse) and event.status_code != 101:
            event = await worker.next()
        if isinstance(event, h11.Response):
            await self._refused(worker, opened, event)
            return True
        if not isinstance(event, h11.InformationalResponse):
            raise worker_left()
        answered = {name.lower(): value for name, value in text(event)}
        if answered.get("sec-websocket-accept") != accept_of(key):
            raise HttpProblem(502, "the function's answer to the WebSocket handshake is wrong")
        head = self._head(200, text(event), opened)
        accepted = self._admission.call.accepted
        if accepted is not None and "sec-websocket-protocol" not in answered:
            head.append((b"sec-websocket-protocol", accepted.encode("latin-1")))
        self._call.response_head(head, False)
        worker.release()
        return await self._relay(opened.wire)

    @staticmethod
    def _head(status: int, headers: Iterable[Header], opened: Opened) -> list[RawHeader]:
        kept = [pair for pair in strip_hop_by_hop(list(headers)) if pair[0].lower() != "sec-websocket-accept"]
        lowered = [(name.lower(), value) for name, value in (*kept, *response_additions(opened.request_id))]
        return [(b":status", b"%d" % status), *raw(lowered)]

    async def _refused(self, worker: H1Side, opened: Opened, event: h11.Response) -> None:
        if event.status_code < 300:
            # Over HTTP/2 such a status would say that the WebSocket is open.
            raise HttpProblem(501, f"the function answered the WebSocket handshake with {event.status_code}")
        self._call.response_head(self._head(event.status_code, text(event), opened), False)
        self._call.discard_request()
        while isinstance(part := await worker.next(), h11.Data):
            await self._downward(bytes(part.data))
        if not isinstance(part, h11.EndOfMessage):
            raise ConnectionResetError("the function closed the connection")
        self._call.response_end(None)

    # --- the open WebSocket

    async def _relay(self, wire: Wire) -> bool:
        """Pass bytes; whether the function ended first, as the protocol wants."""
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
                    # The caller's connection has other calls, which must not want for it.
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
        """Give the caller bytes, at its pace."""
        self._call.response_data(data)
        while self._call.to_caller.size > READ_BUFFER:
            self._taken.clear()
            await self._taken.wait()
