"""A caller's HTTP/1.1 connection: requests one after the other, or an upgrade and then raw bytes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TypeVar

import h11

from nvcf_broker.wire import Splice, Wire
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.grpc_status import grpc_trailers, is_grpc
from nvcf_gateway.sessions.h1 import (
    Event,
    H1Peer,
    decode_headers,
    request_headers,
    response_headers,
    wants_upgrade,
)
from nvcf_gateway.sessions.opening import Admission, Opened, SessionOpener, worker_left
from nvcf_gateway.sessions.routing import Header, SessionCall, encode_headers, read_call
from nvcf_proto.headers import PROBLEM_JSON

_log = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
IDLE_SECONDS = 75.0

T = TypeVar("T")
Key = tuple[str, str | None, str, str | None]


class H1Caller:
    """One connection of a caller."""

    def __init__(self, wire: Wire, opener: SessionOpener) -> None:
        self._opener = opener
        self._caller = H1Peer(wire, h11.SERVER)
        self._sessions: dict[Key, tuple[Opened, H1Peer]] = {}
        self._orderly = False
        self._leaving = False
        self._idle = True
        self._bodiless = False
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve the connection until the caller is gone; its sessions end with it."""
        self._task = asyncio.current_task()
        timeout = HEAD_SECONDS
        try:
            while not self._leaving and await self._serve_next(timeout):
                timeout = IDLE_SECONDS
                self._caller.connection.start_next_cycle()
        except (ConnectionError, h11.RemoteProtocolError, h11.LocalProtocolError) as error:
            _log.info("HTTP/1.1 caller: %s", error)
        finally:
            for opened, _ in self._sessions.values():
                if self._orderly:
                    self._opener.ended(opened)
                    opened.wire.close()
                else:
                    opened.wire.abort()
            self._caller.wire.close()

    def leave(self) -> None:
        """Close the connection after the current request: the gateway stops."""
        self._leaving = True
        if self._idle and self._task is not None:
            self._task.cancel()

    async def _serve_next(self, timeout: float) -> bool:
        """Serve one request; return whether the connection may have another."""
        try:
            async with asyncio.timeout(timeout):
                event = await self._caller.next()
        except TimeoutError:
            self._orderly = True
            return False
        except h11.RemoteProtocolError as error:
            await self._refuse(HttpProblem(error.error_status_hint or 400, str(error)), "")
            return False
        if not isinstance(event, h11.Request):
            self._orderly = True
            return False
        self._idle = False
        self._bodiless = event.method == b"HEAD"
        headers = decode_headers(event)
        content_type = _first(headers, "content-type")
        try:
            reusable = await self._serve(event, headers)
        except HttpProblem as problem:
            await self._refuse(problem, content_type)
            reusable = False
        self._idle = True
        return reusable

    async def _serve(self, event: h11.Request, headers: list[Header]) -> bool:
        call = read_call(headers, _first(headers, "host"))
        admission = self._opener.admit(call)
        self._caller.wire.trusted = True
        opened, worker = await self._session(admission, dict(headers))
        upgrade = wants_upgrade(headers)
        request = h11.Request(
            method=event.method, target=event.target,
            headers=encode_headers(request_headers(call, opened.additions, upgrade)),
        )  # fmt: skip
        try:
            await worker.send(request)
            if upgrade is not None:
                return await self._upgrade(opened, worker, call)
            return await self._exchange(opened, worker)
        except (h11.RemoteProtocolError, ConnectionError) as error:
            _log.info("session %s: %s", opened.request_id, error)
            self._drop(opened)
            if self._caller.connection.our_state is h11.SEND_RESPONSE:
                raise worker_left() from None
            self._caller.wire.abort()
            return False

    async def _session(self, admission: Admission, headers: dict[str, str]) -> tuple[Opened, H1Peer]:
        key = admission.key
        known = self._sessions.get(key)
        if known is not None and _reusable(known[1]):
            known[1].connection.start_next_cycle()
            return known
        if known is not None:
            self._drop(known[0])
        opened = await self._while_caller_stays(self._opener.open(admission, headers))
        session = opened, H1Peer(opened.wire, h11.CLIENT)
        self._sessions[key] = session
        return session

    async def _while_caller_stays(self, work: Coroutine[None, None, T]) -> T:
        """Return the result of `work`. Cancels it and raises ConnectionError when the caller leaves."""
        working = asyncio.create_task(work)
        gone = asyncio.create_task(self._caller.wire.wait_gone())
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ConnectionResetError("the caller left")
            return working.result()
        finally:
            gone.cancel()
            await _stopped(working)

    def _drop(self, opened: Opened) -> None:
        opened.wire.close()
        self._sessions = {key: value for key, value in self._sessions.items() if value[0] is not opened}

    # --- one request and its response

    async def _exchange(self, opened: Opened, worker: H1Peer) -> bool:
        sending = asyncio.create_task(self._send_body(worker))
        try:
            await self._while_caller_stays(self._relay_response(opened, worker))
            # A function that responds without reading the whole request leaves both sides in the middle of
            # it.
            complete = sending.done() and not sending.cancelled() and sending.exception() is None
        finally:
            await _stopped(sending)
        return complete and self._caller.is_done and not self._leaving

    async def _send_body(self, worker: H1Peer) -> None:
        while True:
            event = await self._caller.next()
            if not isinstance(event, h11.Data | h11.EndOfMessage):
                return
            await worker.send(event)
            if isinstance(event, h11.EndOfMessage):
                return

    async def _relay_response(self, opened: Opened, worker: H1Peer) -> None:
        while True:
            event = await worker.next()
            if isinstance(event, h11.InformationalResponse):
                await self._caller.send(
                    h11.InformationalResponse(status_code=event.status_code, headers=event.headers)
                )
            elif isinstance(event, h11.Response):
                await self._send_response(opened, event)
            elif isinstance(event, h11.Data):
                await self._caller.send(event)
            elif isinstance(event, h11.EndOfMessage):
                await self._caller.send(event)
                return
            else:
                raise ConnectionResetError("the function closed the connection")

    # --- upgrade

    async def _upgrade(self, opened: Opened, worker: H1Peer, call: SessionCall) -> bool:
        await worker.send(h11.EndOfMessage())
        # On the caller's side h11 pauses only after the end of the (empty) request.
        if not isinstance(await self._caller.next(), h11.EndOfMessage):
            raise HttpProblem(400, "a request that asks for an upgrade cannot have a body")
        event = await self._while_caller_stays(worker.next())
        if not isinstance(event, h11.InformationalResponse):
            return await self._not_switched(opened, worker, event)
        headers = response_headers(
            decode_headers(event), opened.response_additions, switched=True, accepted=call.accepted
        )
        await self._caller.send(
            h11.InformationalResponse(
                status_code=event.status_code, headers=encode_headers(headers), reason=event.reason
            )
        )
        for peer in (worker, self._caller):
            peer.release()
        splice = Splice(self._caller.wire, opened.wire)
        await splice.run()
        if splice.first_ended is opened.wire and not splice.broken:
            # The function saw the orderly end of its protocol and closed first, so its worker knows already.
            self._orderly = True
            self._drop(opened)
        return False

    async def _not_switched(self, opened: Opened, worker: H1Peer, event: Event) -> bool:
        if not isinstance(event, h11.Response):
            raise ConnectionResetError("the function closed the connection")
        await self._send_response(opened, event)
        await self._while_caller_stays(self._relay_response(opened, worker))
        return self._caller.is_done and not self._leaving

    async def _send_response(self, opened: Opened, event: h11.Response) -> None:
        headers = response_headers(decode_headers(event), opened.response_additions, switched=False)
        await self._caller.send(
            h11.Response(status_code=event.status_code, headers=encode_headers(headers), reason=event.reason)
        )

    async def _refuse(self, problem: HttpProblem, content_type: str) -> None:
        if self._caller.connection.our_state not in (h11.SEND_RESPONSE, h11.IDLE):
            self._caller.wire.abort()
            return
        self._orderly = True
        if is_grpc(content_type):
            status, body = 200, b""
            headers = [
                ("content-type", content_type),
                *grpc_trailers(problem),
            ]
        else:
            status, body = problem.status, problem.problem.to_json()
            headers = [("content-type", PROBLEM_JSON), *problem.headers.items()]
        headers += [("content-length", str(len(body))), ("connection", "close")]
        await self._caller.send(h11.Response(status_code=status, headers=encode_headers(headers)))
        if body and not self._bodiless:
            await self._caller.send(h11.Data(data=body))
        await self._caller.send(h11.EndOfMessage())


def _reusable(worker: H1Peer) -> bool:
    return not worker.wire.is_lost and not worker.wire.at_eof and worker.is_done


def _first(headers: list[Header], wanted: str) -> str:
    return next((value for name, value in headers if name.lower() == wanted), "")


async def _stopped(task: asyncio.Task[T]) -> None:
    """Cancel a task and wait for its end; its exception was handled where it was awaited."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
