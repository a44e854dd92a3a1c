"""The connections of one listener: each has a task, and an end when the gateway stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable

from nvcf_broker.wire import Wire
from nvcf_gateway.errors import SetupError

_log = logging.getLogger(__name__)

BACKLOG = 1024
TLS_HANDSHAKE_SECONDS = 10.0


class Listener:
    """Accepts connections and runs `serve(wire)` for each."""

    def __init__(self, serve: Callable[[Wire], Awaitable[None]]) -> None:
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(
        self, address: tuple[str, int], *, what: str, flag: str, tls: ssl.SSLContext | None = None
    ) -> str:
        """Listen; returns `host:port` as bound. Raises SetupError."""
        host, port = address
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Wire(self._connected),
                host,
                port,
                backlog=BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=TLS_HANDSHAKE_SECONDS if tls is not None else None,
            )
        except OSError as error:
            raise SetupError(
                f"cannot listen on {host}:{port} ({what}): {error.strerror}. Choose {flag}"
            ) from error
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    def _connected(self, wire: Wire) -> None:
        task = asyncio.create_task(self._run(wire))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, wire: Wire) -> None:
        try:
            await self._serve(wire)
        except Exception:  # noqa: BLE001 # one connection's failure is not the others'
            _log.exception("a connection's handler failed")
            wire.abort()

    def stop_accepting(self) -> None:
        """Take no further connections."""
        if self._server is not None:
            self._server.close()

    async def stop(self, patience: float) -> None:
        """Wait `patience` seconds for connections to end, then cut them."""
        self.stop_accepting()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            if tasks:
                await asyncio.wait(tasks, timeout=5.0)
