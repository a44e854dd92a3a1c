"""Opening of sessions: queue a request for a new one, or ask the worker that still holds an old one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nvcf_broker.errors import BrokerError
from nvcf_broker.wire import Wire
from nvcf_gateway.access.authorization import Authenticator, Authorizer, Caller
from nvcf_gateway.access.revocations import Revocations
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.errors import HttpProblem, NoRoom, QueueFull
from nvcf_gateway.queue.demand import Demand
from nvcf_gateway.queue.message import message_headers
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.ratelimit.limiter import RateLimiter
from nvcf_gateway.sessions.routing import Header, SessionCall, response_additions
from nvcf_gateway.sessions.session_records import SessionLookup, SessionRecord
from nvcf_gateway.sessions.tunnels import ExpectedTunnel, TunnelTable
from nvcf_gateway.sessions.turns import Turns
from nvcf_gateway.telemetry.sessions import SessionTelemetry
from nvcf_proto import headers as names
from nvcf_proto import subjects
from nvcf_proto.ids import new_id
from nvcf_proto.models import FunctionVersion
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.settings import SESSION_LINK_TIMEOUT

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Admission:
    """An authorized call."""

    caller: Caller
    version: FunctionVersion
    call: SessionCall

    @property
    def key(self) -> tuple[str, str | None, str, str | None]:
        """The key that calls of one connection must have in common to share a session."""
        target = self.call.target
        return target.function_id, target.version_id, self.caller.subject, self.call.request_id


@dataclass(frozen=True)
class Opened:
    """A session with its tunnel.

    `additions` are headers of the platform for the function, `response_additions` those for the caller.
    """

    request_id: str
    version: FunctionVersion
    wire: Wire
    additions: list[Header]
    response_additions: list[Header]


def build_work(
    request_id: str, caller: Caller, region: str, tunnel_url: str, token: str, requested_at: int
) -> bytes:
    """Return the encoded WorkerInvokeFunctionRequest of a session; `requested_at` in Unix nanoseconds."""
    message = nvcf_pb2.WorkerInvokeFunctionRequest(
        requestId=request_id, ncaId=caller.nca_id, subject=caller.subject
    )
    message.requestTime.FromNanoseconds(requested_at)
    message.statefulConfig.nvcfRegionOfInvoker = region
    connection = message.statefulConfig.connectionConfigs.add().http1Config
    connection.proxyURI = tunnel_url
    connection.proxyAuthorizationToken = token
    return message.SerializeToString()


def function_headers(request_id: str, caller: Caller, version: FunctionVersion) -> list[Header]:
    """Return the headers that the gateway adds for the function; in a tunnel the worker cannot add them."""
    return [
        (names.NVCF_REQID.lower(), request_id),
        (names.NVCF_SUB.lower(), caller.subject),
        (names.NVCF_NCAID.lower(), caller.nca_id),
        (names.NVCF_FUNCTION_ID.lower(), version.function_id),
        (names.NVCF_FUNCTION_VERSION_ID.lower(), version.id),
    ]


class SessionOpener:
    """Opens sessions for this replica's callers, and ends them."""

    def __init__(
        self,
        authenticator: Authenticator,
        authorizer: Authorizer,
        queue: RequestQueue,
        lookup: SessionLookup,
        tunnels: TunnelTable,
        owner: BackgroundTasks,
        tunnel_url: Callable[[], str],
        limiter: RateLimiter,
        demand: Demand,
        telemetry: SessionTelemetry,
        revocations: Revocations,
        *,
        secure: bool,
    ) -> None:
        self._revocations = revocations
        self._secure = secure
        self._telemetry = telemetry
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._queue = queue
        self._lookup = lookup
        self._tunnels = tunnels
        self._owner = owner
        self._tunnel_url = tunnel_url
        self._limiter = limiter
        self._demand = demand
        self.turns = Turns()

    def admit(self, call: SessionCall) -> Admission:
        """Authenticate and authorize a call. Raises HttpProblem."""
        caller = self._authenticator.caller(call.authorization)
        return Admission(caller, self._authorizer.version(caller, call.target), call)

    async def open(self, admission: Admission, trace: Mapping[str, str]) -> Opened:
        """Open a session for a call: the one it asks for, else a new one. Raises HttpProblem.

        `trace` are the caller's headers, which may carry a W3C trace context.
        """
        with self._telemetry.opening(admission.version, trace) as carrier:
            opened = await self._open(admission, carrier)
        self._telemetry.connected(opened.wire)
        self._revocations.watch_session(
            admission.caller,
            opened.version.function_id,
            opened.version.id,
            lambda: opened.wire.is_lost,
            lambda: self._revoked(opened),
        )
        return opened

    def _revoked(self, opened: Opened) -> None:
        _log.info("session ended: its right has ended", extra={"request_id": opened.request_id})
        self.ended(opened)
        opened.wire.abort()

    async def _open(self, admission: Admission, trace: Mapping[str, str]) -> Opened:
        try:
            async with asyncio.timeout(SESSION_LINK_TIMEOUT):
                if admission.call.request_id is not None:
                    opened = await self._reopen(admission, admission.call.request_id)
                    if opened is not None:
                        return opened
                    if admission.call.insists:
                        raise HttpProblem(404, f"session {admission.call.request_id} has ended")
                return await self._open_new(admission, trace)
        except TimeoutError:
            raise HttpProblem(
                504, "no worker took the session in time; is an instance of the function running?"
            ) from None
        except QueueFull as error:
            raise NoRoom(str(error)) from None
        except BrokerError as error:
            _log.error("%s", error)
            raise HttpProblem(503, str(error)) from None

    async def _open_new(self, admission: Admission, trace: Mapping[str, str]) -> Opened:
        request_id, version = new_id(), admission.version
        self._revocations.require_room(admission.caller.nca_id)
        await self._limiter.admit(version, admission.caller.nca_id, admission.caller.subject)
        sequence: int | None = None
        connected = False
        with self._tunnels.expect(request_id) as expected:
            payload = self._work(expected, admission.caller)
            sending = self._telemetry.enqueue(version, request_id, len(payload), trace)
            headers = message_headers(sending.carrier, None, 0)
            headers[names.RECONNECT_SUBJECT] = subjects.version_reconnect_subject(version.id, request_id)
            try:
                with sending:
                    sequence = await self._queue.publish(version.id, request_id, payload, headers)
                await self._demand.queued(version.id, request_id, sending.carrier)
                wire = await expected.wait()
                connected = True
            finally:
                if not connected:
                    self._owner.spawn(
                        self._withdraw(version.id, request_id, sequence), f"withdraw {request_id}"
                    )
        remembering = self._lookup.remember(
            version.function_id, version.id, admission.caller.nca_id, request_id
        )
        self._owner.spawn(remembering, f"record of session {request_id}")
        return self._opened(admission.caller, version, request_id, wire)

    async def _reopen(self, admission: Admission, request_id: str) -> Opened | None:
        found = await self._lookup.find(request_id)
        if found is None or not _may_return(admission, found):
            return None
        target = admission.call.target
        if target.version_id is None and found.version_id != admission.version.id:
            named = type(target)(found.function_id, found.version_id)
            version = self._authorizer.version(admission.caller, named)
        else:
            version = admission.version
        with self._tunnels.expect(request_id) as expected:
            payload = self._work(expected, admission.caller)
            reconnect = asyncio.create_task(
                self._lookup.request_reconnect(found.version_id, request_id, payload, SESSION_LINK_TIMEOUT)
            )
            try:
                either: set[asyncio.Future[Any]] = {reconnect, expected.wire}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if reconnect.done() and not expected.wire.done() and not reconnect.result():
                    await self._lookup.forget(found, request_id)
                    return None
                wire = await expected.wait()
            finally:
                reconnect.cancel()
        return self._opened(admission.caller, version, request_id, wire)

    def _work(self, expected: ExpectedTunnel, caller: Caller) -> bytes:
        return build_work(
            expected.request_id,
            caller,
            self._queue.region,
            self._tunnel_url(),
            expected.token,
            time.time_ns(),
        )

    def _opened(self, caller: Caller, version: FunctionVersion, request_id: str, wire: Wire) -> Opened:
        additions = response_additions(request_id, secure=self._secure)
        return Opened(request_id, version, wire, function_headers(request_id, caller, version), additions)

    def ended(self, opened: Opened) -> None:
        """End a session whose caller left in order: its worker need not wait for a return."""
        self._owner.spawn(self._end(opened), f"end session {opened.request_id}")

    async def _end(self, opened: Opened) -> None:
        await self._queue.cancel(opened.version.id, opened.request_id)

    async def _withdraw(self, version_id: str, request_id: str, sequence: int | None) -> None:
        try:
            await self._queue.cancel(version_id, request_id)
            await self._queue.remove(version_id, request_id, sequence)
        except BrokerError as error:
            _log.warning("%s", error, extra={"request_id": request_id})


def _may_return(admission: Admission, found: SessionRecord) -> bool:
    target = admission.call.target
    return (
        found.function_id == target.function_id
        and target.version_id in (None, found.version_id)
        and found.nca_id == admission.caller.nca_id
    )


def worker_left() -> HttpProblem:
    """Return the problem that the tunnel broke before the response was complete."""
    return HttpProblem(503, "the worker left the session; call again for a new one")
