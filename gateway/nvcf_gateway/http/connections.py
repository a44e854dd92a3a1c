"""Callers' connections that go wrong: bytes that are not HTTP, and callers that leave during an upload."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from enum import Enum, auto

from aiohttp import HttpVersion, HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import BaseRequest

SERVER_LOG = logging.getLogger("nvcf_gateway.server")
CHECK_EVERY_SECONDS = 0.5
FIRST_CHECK_SECONDS = 0.05
PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""Sent to a peer that has shut down its sending side. HTTP/1.1 clients skip it, a closed socket resets."""
PROBE_AFTER = (0.0, 2.0, 10.0, 60.0)
"""When to probe, seconds: a peer may leave later. Some clients take no more than five interim responses."""


class Peer(Enum):
    """What TCP knows of the other end of a connection."""

    SENDS = auto()
    """It can still send, or nothing is known."""
    ENDED = auto()
    """It has shut down its sending side. Whether it still reads is not known."""
    GONE = auto()
    """It has reset the connection."""


# ESTABLISHED, FIN_WAIT1, FIN_WAIT2 and CLOSE_WAIT of linux/tcp_states.h.
_STATES = {1: Peer.SENDS, 4: Peer.SENDS, 5: Peer.SENDS, 8: Peer.ENDED}


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


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Return what TCP knows of the peer, regardless of unread data."""
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_INFO", None)
    if connection is None or option is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return Peer.SENDS
    try:
        state: bytes = connection.getsockopt(socket.IPPROTO_TCP, option, 1)
    except OSError:
        return Peer.GONE
    return _STATES.get(state[0], Peer.GONE)


def may_probe(transport: asyncio.BaseTransport, version: HttpVersion) -> bool:
    """Return whether a peer that has shut down its sending side can be asked if it still reads."""
    # TLS connections end as a whole, and HTTP/1.0 knows no interim responses.
    return version >= HttpVersion11 and transport.get_extra_info("sslcontext") is None


class Watch:
    """Aborts a connection, which cancels its handler, when its peer has left. Works on Linux only.

    A caller that has closed its connection and one that has shut down its sending side look alike; they
    differ in what they do with `PROBE`. `may_probe`: whether that may be sent now; otherwise the end of the
    sending side counts as the end of the caller.
    """

    def __init__(self, transport: asyncio.Transport, may_probe: Callable[[], bool]) -> None:
        self._transport = transport
        self._may_probe = may_probe
        self._probes = 0
        self._first_probe = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, first: float = CHECK_EVERY_SECONDS) -> None:
        """Look now, in `first` seconds, and from then on again and again."""
        if self._look():
            self._later(first)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _later(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._again)

    def _again(self) -> None:
        if self._look():
            self._later(CHECK_EVERY_SECONDS)

    def _look(self) -> bool:
        if self._transport.is_closing():
            return False
        peer = peer_of(self._transport)
        if peer is Peer.GONE or (peer is Peer.ENDED and not self._probed()):
            self._transport.abort()
            return False
        return True

    def _probed(self) -> bool:
        """Probe when it is time; return whether the peer has ever been probed."""
        now = asyncio.get_running_loop().time()
        if not self._probes:
            self._first_probe = now
        due = self._probes < len(PROBE_AFTER) and now - self._first_probe >= PROBE_AFTER[self._probes]
        if due and self._may_probe():
            self._probes += 1
            self._transport.write(PROBE)
        return self._probes > 0


@contextlib.contextmanager
def abort_on_disconnect(request: BaseRequest) -> Iterator[None]:
    """Abort the connection when the caller of a request has left whose body is still on the way.

    Back-pressure stops reading from the caller's socket, and a socket that is not read does not report that
    the peer is gone. The kernel knows of a reset, and of the end of what the peer sends once all data before
    it fits into its buffer. Without Linux the poll time ends the wait.
    """
    transport = request.transport
    if transport is None:
        yield
        return

    def unanswered() -> bool:
        return request.writer.output_size == 0 and may_probe(transport, request.version)

    watch = Watch(transport, unanswered)
    watch.start()
    try:
        yield
    finally:
        watch.stop()
