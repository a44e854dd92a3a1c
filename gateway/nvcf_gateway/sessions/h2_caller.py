"""A caller's HTTP/2 connection: its streams become calls of sessions (protocol.md, section 7.2)."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine

from h2.errors import ErrorCodes

from nvcf_broker.wire import Wire
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.responses import internal_error
from nvcf_gateway.sessions.h2_call import H2Call, new_call
from nvcf_gateway.sessions.h2_endpoint import H2Endpoint
from nvcf_gateway.sessions.h2_protocol import ResetBucket
from nvcf_gateway.sessions.h2_session import H2Session
from nvcf_gateway.sessions.h2_websocket import WEBSOCKET, H2WebSocket
from nvcf_gateway.sessions.opening import Admission, SessionOpener
from nvcf_gateway.sessions.routing import Header, RawHeader, encode_headers, read_call

_log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
HEAD_SECONDS = 15.0
"""Longest silence of a connection that has shown no valid key."""
MAX_SESSIONS = 64

Key = tuple[str, str | None, str, str | None]


class H2Caller:
    """One connection of a caller. Implements `h2_protocol.Events` for the caller's endpoint."""

    def __init__(self, wire: Wire, opener: SessionOpener) -> None:
        self._wire = wire
        self._opener = opener
        self._endpoint = H2Endpoint(wire, self, opener.turns, client=False)
        self._calls: dict[int, H2Call] = {}
        self._sessions: dict[Key, H2Session] = {}
        self._leaving: set[H2Session] = set()
        # Sessions whose tunnel broke: their workers may still hold them.
        self._broken: dict[Key, str] = {}
        self._done = asyncio.Event()
        self._group: asyncio.TaskGroup
        self._tasks: set[asyncio.Task[None]] = set()
        # Each WebSocket is a session of its own.
        self._sockets: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._goaway = False
        self._orderly = False
        self._served = 0
        self._resets = ResetBucket(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Serve the connection until the caller is gone; its sessions end with it."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._endpoint.start()
                await self._until_done()
                for task in tuple(self._tasks):
                    task.cancel()
        finally:
            self._close_sessions()
            self._endpoint.close()

    async def _until_done(self) -> None:
        served = -1
        while not self._done.is_set():
            try:
                async with asyncio.timeout(IDLE_SECONDS if self._wire.trusted else HEAD_SECONDS):
                    await self._done.wait()
            except TimeoutError:
                if served == self._served and not self._calls and not self._sessions:
                    return
                served = self._served

    def _close_sessions(self) -> None:
        # A caller that leaves because this gateway stops will return through another gateway.
        orderly = self._orderly and not self._refusing
        for session in (*self._sessions.values(), *self._leaving):
            if orderly and session.opened is not None:
                self._opener.ended(session.opened)
            session.close(broken=not orderly)

    def leave(self) -> None:
        """Let running calls finish and take no further ones: the gateway stops."""
        self._refusing = True
        self._endpoint.announce_leaving()
        self._check_done()

    def _check_done(self) -> None:
        if (self._refusing or self._goaway) and not self._calls:
            self._orderly = self._goaway
            self._done.set()

    # --- events of the caller's endpoint

    def on_head(self, stream_id: int, headers: list[RawHeader], ended: bool) -> None:
        self._served += 1
        if self._refusing or self._done.is_set():
            self._endpoint.reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        call = new_call(self._endpoint, stream_id, headers)
        self._calls[stream_id] = call
        if ended:
            call.request_end(None)
        try:
            self._route(call, headers)
        except HttpProblem as problem:
            call.fail(problem)
            self._maybe_over(call)
            self._endpoint.charge_refusal()

    def _route(self, call: H2Call, headers: list[RawHeader]) -> None:
        text = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        pseudo = {name: value for name, value in text if name.startswith(":")}
        connects = pseudo.get(":method") == "CONNECT"
        if connects != (pseudo.get(":protocol") == WEBSOCKET):
            raise HttpProblem(501, "CONNECT is served for WebSocket only")
        plain = [pair for pair in text if not pair[0].startswith(":")]
        authority = pseudo.get(":authority") or dict(plain).get("host", "")
        read = read_call(plain, authority)
        admission = self._opener.admit(read)
        self._endpoint.admit()
        self._wire.trusted = True
        if connects:
            self._check_room()
            socket = H2WebSocket(call, admission, self._opener, self._maybe_over)
            socket.task = self._spawn(socket.run(pseudo.get(":path", "/"), authority, plain))
            self._sockets.add(socket.task)
            socket.task.add_done_callback(self._sockets.discard)
            return
        call.head = [
            *(pair for pair in headers if pair[0].startswith(b":")),
            *encode_headers(read.headers),
        ]
        self._session(admission, plain).add(call)

    def _session(self, admission: Admission, headers: list[Header]) -> H2Session:
        key = self._key(admission)
        session = self._sessions.get(key)
        if session is not None:
            return session
        self._check_room()
        broken = self._broken.pop(key, None)
        if broken is not None and admission.call.request_id is None:
            # Without `insists`: if the worker is gone for good, a new session replaces it.
            admission = dataclasses.replace(
                admission, call=dataclasses.replace(admission.call, request_id=broken)
            )
        session = H2Session(admission, self._maybe_over, self._session_over, self._opener.turns)
        self._sessions[key] = session
        self._spawn(self._open(session, dict(headers)))
        return session

    def _check_room(self) -> None:
        if len(self._sessions) + len(self._sockets) >= MAX_SESSIONS:
            raise HttpProblem(429, f"one connection may have {MAX_SESSIONS} sessions")

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _key(self, admission: Admission) -> Key:
        function_id, version_id, subject, request_id = admission.key
        if request_id is None:
            return admission.key
        # A caller that repeats the id of its current session is in that session already.
        without = (function_id, version_id, subject, None)
        session = self._sessions.get(without)
        if session is not None and session.opened is not None and session.opened.request_id == request_id:
            return without
        return admission.key

    async def _open(self, session: H2Session, headers: dict[str, str]) -> None:
        try:
            session.connect(await self._opener.open(session.admission, headers))
        except HttpProblem as problem:
            session.fail(problem)
        except Exception:  # noqa: BLE001 # logged with an id; the caller gets the id only
            session.fail(internal_error(_log))

    def on_informational(self, stream_id: int, headers: list[RawHeader]) -> None:
        """Ignore: a server receives none."""

    def on_data(self, stream_id: int, data: bytes) -> None:
        call = self._calls.get(stream_id)
        if call is None:
            self._endpoint.credit(stream_id, len(data))
        else:
            call.request_data(data)

    def on_end(self, stream_id: int, trailers: list[RawHeader] | None) -> None:
        call = self._calls.get(stream_id)
        if call is not None:
            call.request_end(trailers)
            self._maybe_over(call)

    def on_reset(self, stream_id: int, code: int) -> None:
        """End the call, and close the connection of a caller that resets too often."""
        call = self._calls.pop(stream_id, None)
        if call is not None:
            call.to_worker.drop()
            if call.session is not None:
                call.session.drop(call, code)
            if not self._resets.acquire(asyncio.get_running_loop().time()):
                _log.info("HTTP/2 connection closed: the caller resets too many of its calls")
                self._endpoint.close(ErrorCodes.ENHANCE_YOUR_CALM)
                self._done.set()
            self._check_done()

    def on_finished(self, stream_id: int) -> None:
        """Complete the call if its request is complete too."""
        call = self._calls.get(stream_id)
        if call is None:
            return
        if call.session is not None:
            call.session.response_sent(call)
        else:
            self._maybe_over(call)

    def on_room(self) -> None:
        """Ignore: a server opens no streams."""

    def on_goaway(self, last_stream_id: int) -> None:
        self._goaway = True
        self._check_done()

    def on_eof(self) -> None:
        """Close the connection. With calls in flight the caller's end counts as an accident."""
        self._orderly = self._goaway or not self._calls
        self._done.set()

    def on_lost(self, error: Exception | None) -> None:
        """Close the sessions: the connection is gone."""
        if not self._done.is_set():
            self._orderly = error is None and (self._goaway or not self._calls)
            self._done.set()

    # --- ends

    def _maybe_over(self, call: H2Call) -> None:
        if not call.over or self._calls.pop(call.caller_id, None) is None:
            return
        if not call.request_ended:
            self._endpoint.reset(call.caller_id, ErrorCodes.NO_ERROR)
        self._check_done()

    def _session_over(self, session: H2Session) -> None:
        for key, known in tuple(self._sessions.items()):
            if known is session:
                del self._sessions[key]
                if session.opened is not None:
                    self._broken[key] = session.opened.request_id
        if session.busy:
            self._leaving.add(session)
        self._leaving = {each for each in self._leaving if each.busy}
