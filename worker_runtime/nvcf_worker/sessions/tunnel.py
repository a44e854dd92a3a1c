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

MAX_LINKS = 32
FUNCTION_CONNECT_SECONDS = 5.0
FUNCTION_RETRY_SECONDS = 0.1

NO_PORT = (
    "501 The function has no port for gRPC and WebSocket sessions: set INFERENCE_PORT, "
    "or give session_port to serve()."
)


class Tunnels:
    """The sessions of one worker. `port` is the function's own on 127.0.0.1, None when it has none."""

    def __init__(
        self,
        port: int | None,
        function_id: str,
        version_id: str,
        connection: Callable[[], Client | None],
    ) -> None:
        self._port = port
        self._function_id = function_id
        self._version_id = version_id
        self._connection = connection
        self._sessions: dict[str, TunnelSession] = {}

    async def run(self, work: Work, scope: CancelScope) -> None:
        """One session, from its first link to its end. Raises TunnelError when it never came to be."""
        target = work.tunnel
        assert target is not None  # noqa: S101 # only sessions come here
        if self._port is None:
            log.error("a session was refused: %s", NO_PORT)
            (await dial(target, work.request_id, NO_PORT)).close()
            return
        session = TunnelSession(
            work, scope, self._port, self._function_id, self._version_id, self._connection
        )
        self._sessions[work.request_id] = session
        try:
            await session.run(target)
        finally:
            del self._sessions[work.request_id]

    def caller_left(self, request_id: str) -> bool:
        """The caller left in order; False when the session has no link yet, or there is none."""
        session = self._sessions.get(request_id)
        return session is not None and session.caller_left()

    async def listen_again(self, connection: Client) -> None:
        """The broker connection was replaced."""
        for session in tuple(self._sessions.values()):
            await session.record.listen(connection)


class TunnelSession:
    """One session: a slot, a record, and the links of a caller that may come back."""

    def __init__(
        self,
        work: Work,
        scope: CancelScope,
        port: int,
        function_id: str,
        version_id: str,
        connection: Callable[[], Client | None],
    ) -> None:
        self._work = work
        self._scope = scope
        self._port = port
        self._connection = connection
        self.record = SessionRecord(work, function_id, version_id, self._on_reconnect)
        self._links: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup
        self._changed = asyncio.Event()
        self._linked = False
        # Callers that said good-bye, less links that broke: below zero, somebody may come back.
        self._balance = 0
        self._left_silently = 0
        self._failure: TunnelError | None = None
        self._ended = False

    async def run(self, target: TunnelTarget) -> None:
        """Until the last link has ended and nobody has come back in time."""
        try:
            async with asyncio.TaskGroup() as self._group:
                # The caller may come back as soon as it has seen the first byte.
                await self._announce()
                renewing = self._group.create_task(self._renew())
                self._add(target)
                await self._until_over()
                self._ended = True
                renewing.cancel()
        except asyncio.CancelledError:
            if self._linked and self._scope.end is End.HANDED_BACK:
                # Its caller hangs on this very process: nobody else could go on with it.
                self._scope.end = End.SESSION_CUT
            raise
        finally:
            self._ended = True
            connection = self._connection()
            if connection is not None:
                await self.record.forget(connection)
        if not self._linked and self._failure is not None:
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
                # The library may swallow a cancellation that comes together with an answer.
                raise_if_cancelled()

    async def _until_over(self) -> None:
        while True:
            while self._links:
                self._changed.clear()
                await self._changed.wait()
            if self._balance >= 0 or not self._linked:
                return
            log.info("the caller is cut off; waiting %g s for it", settings.SESSION_RECONNECT_WAIT)
            try:
                async with asyncio.timeout(settings.SESSION_RECONNECT_WAIT):
                    while not self._links and self._balance < 0:
                        self._changed.clear()
                        await self._changed.wait()
            except TimeoutError:
                return

    def caller_left(self) -> bool:
        """The caller says that it will not come back; other links of the session go on."""
        if not self._linked:
            return False
        if self._left_silently:
            self._left_silently -= 1
        else:
            self._balance += 1
        self._changed.set()
        return True

    # --- links

    def _add(self, target: TunnelTarget) -> None:
        self._balance = max(0, self._balance)
        task = self._group.create_task(self._link(target))
        self._links.add(task)
        task.add_done_callback(self._link_over)
        self._changed.set()

    def _link_over(self, task: asyncio.Task[None]) -> None:
        self._links.discard(task)
        self._changed.set()

    async def _link(self, target: TunnelTarget) -> None:
        request_id = self._work.request_id
        function: Wire | None = None
        refusal: str | None = None
        try:
            function = await connect_function(self._port)
        except OSError as error:
            refusal = f"503 The function does not accept connections on its port {self._port}."
            log.error("%s (%s)", refusal, error.strerror or error)
        try:
            gateway = await dial(target, request_id, refusal)
        except BaseException as error:
            if function is not None:
                function.abort()
            if not isinstance(error, TunnelError):
                raise
            log.warning("no link for the session: %s", error)
            self._failure = error
            return
        if function is None:
            gateway.close()
            return
        self._linked = True
        splice = Splice(gateway, function, right_waits=True)
        await splice.run()
        # A function that closes first has finished.
        if splice.first_ended is gateway:
            self._gateway_ended(splice.first_broken)

    def _gateway_ended(self, broken: bool) -> None:
        """Whether its caller may come back.

        One that leaves says so, before or after: by a cancel where the gateway has a reconnect subject of its
        own, elsewhere the orderly end of its link is enough.
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
        if self._ended or request.requestId != self._work.request_id or len(self._links) >= MAX_LINKS:
            return
        log.info("the caller comes back")
        self._add(target)
        try:
            # Tells the gateway that the session lives.
            await message.respond(b"")
        except nats.errors.Error as error:
            log.debug("a reconnect was not answered: %s", error)


async def connect_function(port: int) -> Wire:
    """A connection to the function's own server; one that starts up gets a moment. Raises OSError."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + FUNCTION_CONNECT_SECONDS
    while True:
        try:
            _, wire = await loop.create_connection(Wire, "127.0.0.1", port)
            return wire
        except OSError:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(FUNCTION_RETRY_SECONDS)
