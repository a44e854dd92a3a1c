"""Stateful sessions: bytes between a gateway and the function's own server (protocol.md, section 7)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import nats.errors
from google.protobuf.message import DecodeError

from nvcf_broker.requests import raise_if_cancelled
from nvcf_broker.wire import Splice, Wire
from nvcf_proto import settings
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import MalformedWork, TunnelError
from nvcf_worker.function.cancellation import CancelScope, End
from nvcf_worker.message import TunnelTarget, Work, tunnel_target
from nvcf_worker.sessions.dial import dial
from nvcf_worker.sessions.record import SessionRecord

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

log = logging.getLogger("nvcf_worker")

MAX_TUNNELS = 32
FUNCTION_CONNECT_SECONDS = 5.0
FUNCTION_RETRY_SECONDS = 0.1

NO_PORT = (
    "501 The function has no port for gRPC and WebSocket sessions: set INFERENCE_PORT, "
    "or give session_port to serve()."
)


class Tunnels:
    """The sessions of one worker. `address`: host and port of the function's server; None if it has none."""

    def __init__(
        self,
        address: tuple[str, int] | None,
        function_id: str,
        version_id: str,
        connection: Callable[[], Client | None],
    ) -> None:
        self._address = address
        self._function_id = function_id
        self._version_id = version_id
        self._connection = connection
        self._sessions: dict[str, TunnelSession] = {}

    async def run(self, work: Work, scope: CancelScope) -> None:
        """Run a session from its first tunnel to its end. Raises TunnelError if no tunnel could be opened."""
        target = work.tunnel
        assert target is not None  # noqa: S101 # only sessions come here
        if self._address is None:
            log.error("a session was refused: %s", NO_PORT)
            (await dial(target, work.request_id, NO_PORT)).close()
            return
        session = TunnelSession(
            work, scope, self._address, self._function_id, self._version_id, self._connection
        )
        self._sessions[work.request_id] = session
        try:
            await session.run(target)
        finally:
            del self._sessions[work.request_id]

    def caller_left(self, request_id: str) -> bool:
        """Note that the caller has left in order. Return False if there is no session with a tunnel."""
        session = self._sessions.get(request_id)
        return session is not None and session.caller_left()

    async def listen_again(self, connection: Client) -> None:
        """Renew the subscriptions of all sessions, after the broker connection was replaced."""
        for session in tuple(self._sessions.values()):
            await session.record.listen(connection)


class TunnelSession:
    """One session: its record, and the tunnels of a caller that may reconnect."""

    def __init__(
        self,
        work: Work,
        scope: CancelScope,
        address: tuple[str, int],
        function_id: str,
        version_id: str,
        connection: Callable[[], Client | None],
    ) -> None:
        self._work = work
        self._scope = scope
        self._address = address
        self._connection = connection
        self.record = SessionRecord(work, function_id, version_id, self._on_reconnect)
        self._tunnels: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup
        self._changed = asyncio.Event()
        self._established = False
        # Callers that left in order, minus tunnels that ended at the gateway. Below 0: one may reconnect.
        self._balance = 0
        self._left_silently = 0
        self._failure: TunnelError | None = None
        self._ended = False

    async def run(self, target: TunnelTarget) -> None:
        """Run until the last tunnel has ended and no caller has reconnected in time."""
        try:
            async with asyncio.TaskGroup() as self._group:
                # The caller may reconnect as soon as it has received the first byte.
                await self._announce()
                renewing = self._group.create_task(self._renew())
                self._add(target)
                await self._until_over()
                self._ended = True
                renewing.cancel()
        except asyncio.CancelledError:
            if self._established and self._scope.end is End.HANDED_BACK:
                # Its caller is connected to this process, so no other worker could continue the session.
                self._scope.end = End.SESSION_CUT
            raise
        finally:
            self._ended = True
            connection = self._connection()
            if connection is not None:
                await self.record.forget(connection)
        if not self._established and self._failure is not None:
            raise self._failure

    async def _announce(self) -> None:
        connection = self._connection()
        if connection is not None:
            await self.record.listen(connection)
            await self.record.register(connection)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(settings.SESSION_REGISTER_INTERVAL)
            connection = self._connection()
            if connection is not None:
                await self.record.register(connection)
                # The library may lose a cancellation that arrives together with a response.
                raise_if_cancelled()

    async def _until_over(self) -> None:
        while True:
            while self._tunnels:
                self._changed.clear()
                await self._changed.wait()
            if self._balance >= 0 or not self._established:
                return
            wait = settings.SESSION_RECONNECT_WAIT
            log.info("the caller was disconnected; waiting %g s for it to reconnect", wait)
            try:
                async with asyncio.timeout(wait):
                    while not self._tunnels and self._balance < 0:
                        self._changed.clear()
                        await self._changed.wait()
            except TimeoutError:
                return

    def caller_left(self) -> bool:
        """Note that the caller will not reconnect; other tunnels of the session go on."""
        if not self._established:
            return False
        if self._left_silently:
            self._left_silently -= 1
        else:
            self._balance += 1
        self._changed.set()
        return True

    # --- tunnels

    def _add(self, target: TunnelTarget) -> None:
        self._balance = max(0, self._balance)
        task = self._group.create_task(self._run_tunnel(target))
        self._tunnels.add(task)
        task.add_done_callback(self._tunnel_ended)
        self._changed.set()

    def _tunnel_ended(self, task: asyncio.Task[None]) -> None:
        self._tunnels.discard(task)
        self._changed.set()

    async def _run_tunnel(self, target: TunnelTarget) -> None:
        request_id = self._work.request_id
        function: Wire | None = None
        refusal: str | None = None
        try:
            function = await connect_function(*self._address)
        except OSError as error:
            refusal = f"503 The function does not accept connections on its port {self._address[1]}."
            log.error("%s (%s)", refusal, error.strerror or error)
        try:
            gateway = await dial(target, request_id, refusal)
        except BaseException as error:
            if function is not None:
                function.abort()
            if not isinstance(error, TunnelError):
                raise
            log.warning("no tunnel for the session: %s", error)
            self._failure = error
            return
        if function is None:
            gateway.close()
            return
        self._established = True
        splice = Splice(gateway, function, right_waits=True)
        await splice.run()
        # If the function closes first, it has finished.
        if splice.first_ended is gateway:
            self._gateway_ended(splice.first_broken)

    def _gateway_ended(self, broken: bool) -> None:
        """Decide whether the caller may reconnect.

        A gateway with a reconnect subject of its own sends a cancel, before or after this, if the caller has
        left. With other gateways an orderly end of the tunnel means the same.
        """
        if broken or self._work.reconnect_subject is not None or self._balance > 0:
            self._balance -= 1
        else:
            self._left_silently += 1

    async def _on_reconnect(self, message: Msg) -> None:
        try:
            request = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(message.data)
            target = tunnel_target(request)
        except (DecodeError, MalformedWork) as error:
            log.error("dropped a malformed reconnect: %s", error)
            return
        if self._ended or request.requestId != self._work.request_id or len(self._tunnels) >= MAX_TUNNELS:
            return
        log.info("the caller reconnects")
        self._add(target)
        try:
            # The response tells the gateway that the session is alive.
            await message.respond(b"")
        except nats.errors.Error as error:
            log.debug("a reconnect got no response: %s", error)


async def connect_function(host: str, port: int) -> Wire:
    """Connect to the function's server, with retries for FUNCTION_CONNECT_SECONDS. Raises OSError."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + FUNCTION_CONNECT_SECONDS
    while True:
        try:
            _, wire = await loop.create_connection(Wire, host, port)
            return wire
        except OSError:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(FUNCTION_RETRY_SECONDS)
