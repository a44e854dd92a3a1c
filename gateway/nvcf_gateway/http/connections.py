"""Callers' connections that go wrong: bytes that are not HTTP, and callers that leave during an upload."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

from aiohttp.http_exceptions import HttpProcessingError

SERVER_LOG = logging.getLogger("nvcf_gateway.server")
CHECK_EVERY_SECONDS = 0.5
# States of linux/tcp_states.h in which the peer can still send.
_ALIVE = frozenset((1, 4, 5))  # ESTABLISHED, FIN_WAIT1, FIN_WAIT2


class BadRequestFilter(logging.Filter):
    """Log requests that cannot be parsed or answered as one line of level DEBUG, without traceback.

    Anybody who reaches the port can send such bytes. They must not look like a fault of the gateway, nor fill
    its log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        error = record.exc_info[1] if record.exc_info else None
        malformed = isinstance(error, HttpProcessingError) and error.code < 500
        if not malformed and not isinstance(error, ConnectionError):
            return True
        record.exc_info, record.exc_text = None, None
        what = "request is not HTTP/1.1" if malformed else "connection lost"
        lines = str(error).splitlines() or [type(error).__name__]
        record.msg, record.args = "%s: %s", (what, " ".join(line.strip() for line in lines[:3])[:200])
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return SERVER_LOG.isEnabledFor(logging.DEBUG)


SERVER_LOG.addFilter(BadRequestFilter())


def has_left(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer of a TCP connection has closed it, regardless of unread data."""
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_INFO", None)
    if connection is None or option is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        state: bytes = connection.getsockopt(socket.IPPROTO_TCP, option, 1)
    except OSError:
        return True
    return state[0] not in _ALIVE


@contextlib.contextmanager
def abort_on_disconnect(transport: asyncio.Transport | None) -> Iterator[None]:
    """Abort the connection, which cancels its handler, when the peer has left.

    Back-pressure stops reading from the caller's socket, and a socket that is not read does not report that
    the peer is gone. The kernel knows of a reset, and of a close once all data before it fits into its
    buffer. So this asks for the TCP state twice a second (Linux only). Otherwise the poll time ends the
    wait.
    """
    if transport is None:
        yield
        return
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def check() -> None:
        nonlocal timer
        if timer is not None and has_left(transport):
            transport.abort()
        else:
            timer = loop.call_later(CHECK_EVERY_SECONDS, check)

    check()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
