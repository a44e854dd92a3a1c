"""Raw TCP and TLS connections: read in pieces, given to a receiver, or spliced with another one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Protocol, cast

READ_BUFFER = 256 * 1024
WRITE_HIGH_WATER = 512 * 1024
# Beyond this only control frames can have piled up, for a peer that sends and does not read.
WRITE_LIMIT = 8 * 1024 * 1024
HALF_CLOSED_SECONDS = 60.0
CLOSE_SECONDS = 60.0

_KEEPALIVE = (
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 30),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 3),
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 60_000),
    ("TCP_NODELAY", socket.IPPROTO_TCP, 1),
)


class Receiver(Protocol):
    """Takes a wire's bytes and changes of state, on the event loop."""

    def received(self, data: bytes) -> None:
        """Take bytes that arrived."""

    def ended(self) -> None:
        """Learn that the peer sends nothing more."""

    def lost(self, error: Exception | None) -> None:
        """Learn that the connection is gone; `error` is None when it was closed in order."""

    def writable(self) -> None:
        """Learn that writing may go on."""


class Wire(asyncio.Protocol):
    """One connection. Without a receiver it buffers what arrives, and pauses reading at `READ_BUFFER`."""

    def __init__(self, connected: Callable[[Wire], None] | None = None) -> None:
        self._connected = connected
        self._receiver: Receiver | None = None
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._gone = asyncio.Event()
        self._paused = False
        self.sent = 0
        self.received = 0
        self.trusted = False
        """Whether the peer has shown a valid key or token; a busy listener closes others first."""
        self.on_lost: Callable[[], None] | None = None
        self.transport: asyncio.Transport
        self.at_eof = False
        self.is_lost = False
        self.error: Exception | None = None

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        set_keepalive(transport.get_extra_info("socket"))
        if self._connected is not None:
            self._connected(self)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self._receiver is not None:
            self._receiver.received(data)
            return
        self._buffer += data
        self._arrived.set()
        if len(self._buffer) >= READ_BUFFER:
            self.pause()

    def eof_received(self) -> bool:
        self.at_eof = True
        self._gone.set()
        self._arrived.set()
        if self._receiver is not None:
            self._receiver.ended()
        # TLS cannot be half closed.
        return self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.error = exc
        self._gone.set()
        self._arrived.set()
        self._drained.set()
        if self.on_lost is not None:
            self.on_lost()
        if self._receiver is not None:
            self._receiver.lost(exc)

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()
        if self._receiver is not None:
            self._receiver.writable()

    # --- use

    @property
    def writing_paused(self) -> bool:
        """Whether the peer reads more slowly than this side writes."""
        return not self._drained.is_set()

    @property
    def congested(self) -> bool:
        """Whether more bytes wait to be written than flow control should ever allow."""
        return self.transport.get_write_buffer_size() > WRITE_LIMIT

    def attach(self, receiver: Receiver) -> None:
        """Give the buffered bytes and everything that follows to `receiver`."""
        self._receiver = receiver
        self.resume()
        if self._buffer:
            kept, self._buffer = bytes(self._buffer), bytearray()
            receiver.received(kept)
        if self.at_eof and not self.is_lost:
            receiver.ended()
        if self.is_lost:
            receiver.lost(self.error)

    def unread(self, data: bytes) -> None:
        """Put bytes back in front of what arrives next."""
        self._buffer[:0] = data
        self._arrived.set()

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end. Raises ConnectionError when the connection broke."""
        while not self._buffer:
            if self.is_lost and self.error is not None:
                raise ConnectionResetError(str(self.error))
            if self.at_eof or self.is_lost:
                return b""
            self._arrived.clear()
            self.resume()
            await self._arrived.wait()
        data, self._buffer = bytes(self._buffer), bytearray()
        return data

    async def wait_gone(self) -> None:
        """Wait until the peer has closed the connection, or its half of it."""
        await self._gone.wait()

    async def drain(self) -> None:
        """Wait until writing may go on. Raises ConnectionError when the connection is gone."""
        await self._drained.wait()
        if self.is_lost:
            raise ConnectionResetError("the connection is gone")

    def write(self, data: bytes) -> None:
        """Send bytes. They are dropped when the connection is gone."""
        if not self.is_lost:
            self.sent += len(data)
            self.transport.write(data)

    def write_eof(self) -> None:
        """Close the sending half. A connection that cannot be half closed is closed."""
        if self.is_lost:
            return
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        with contextlib.suppress(OSError):
            self.transport.write_eof()

    def pause(self) -> None:
        """Stop reading until `resume`."""
        if not self._paused and not self.is_lost:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused and not self.is_lost:
            self._paused = False
            self.transport.resume_reading()

    def close(self) -> None:
        """Send what is still buffered, then close. A peer that does not read it is given up."""
        self.transport.close()
        if not self.is_lost and self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort)

    def abort(self) -> None:
        """Reset the connection at once, so that the peer sees an error."""
        if not self.is_lost:
            reset_on_close(self.transport.get_extra_info("socket"))
            self.transport.abort()


def set_keepalive(sock: socket.socket | None) -> None:
    """Set TCP keep-alive, so that a dead peer is noticed within about a minute."""
    if sock is None:
        return
    for name, level, value in _KEEPALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, value)


def reset_on_close(sock: socket.socket | None) -> None:
    """Turn the next close into a reset (RST), which a peer can tell from an orderly end."""
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Flow:
    """One direction of a splice: from `source`, whose receiver it is, to `sink`."""

    def __init__(self, splice: Splice, source: Wire, sink: Wire, *, held: bool = False) -> None:
        self._splice = splice
        self._source = source
        self._sink = sink
        self._held: bytearray | None = bytearray() if held else None
        self.over = False

    def received(self, data: bytes) -> None:
        if self._held is not None:
            self._held += data
            if len(self._held) >= READ_BUFFER:
                self._source.pause()
            return
        self._splice.release()
        self._sink.write(data)
        if self._sink.writing_paused:
            self._source.pause()

    def release(self) -> None:
        """Send what was held back, and hold nothing back from now on."""
        held, self._held = self._held, None
        if held:
            self._sink.write(bytes(held))
        if not self._sink.writing_paused:
            self._source.resume()

    def ended(self) -> None:
        self._splice.release()
        self.over = True
        self._sink.write_eof()
        self._splice.flow_ended(self._source)

    def lost(self, error: Exception | None) -> None:
        self._splice.release()
        self.over = True
        if error is not None:
            self._sink.abort()
        elif not self._sink.is_lost:
            self._sink.close()
        self._splice.wire_lost(self._source, error)

    def writable(self) -> None:
        self._sink.resume()


class Splice:
    """Two wires joined: bytes and ends of one become those of the other, each at the slower one's pace.

    `first_ended` is the wire whose peer closed first, `first_broken` whether that was an error, `broken`
    whether any of the two broke. With `right_waits`, bytes from `right` are held back until `left` has sent
    something: HTTP/2 servers send before their client does, and a proxy that takes over its connection after
    its reply to CONNECT may lose what comes in between.
    """

    def __init__(self, left: Wire, right: Wire, *, right_waits: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._wires = (left, right)
        self._done: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self.first_ended: Wire | None = None
        self.first_broken = False
        self.broken = False
        self._flows = (_Flow(self, left, right), _Flow(self, right, left, held=right_waits))
        self._holding = right_waits
        left.attach(self._flows[0])
        right.attach(self._flows[1])

    async def run(self) -> None:
        """Wait until both are closed. Reset them when this is cancelled."""
        try:
            await self._done
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for wire in self._wires:
                wire.abort()

    def release(self) -> None:
        """Let the bytes of `right` through."""
        if self._holding:
            self._holding = False
            self._flows[1].release()

    def flow_ended(self, source: Wire) -> None:
        """Note that `source` has sent its last byte."""
        if self.first_ended is None:
            self.first_ended = source
            self._timer = self._loop.call_later(HALF_CLOSED_SECONDS, self._cut)
        if all(flow.over for flow in self._flows):
            for wire in self._wires:
                wire.close()

    def wire_lost(self, source: Wire, error: Exception | None) -> None:
        """Note that `source` is gone."""
        if self.first_ended is None:
            self.first_ended, self.first_broken = source, error is not None
        self.broken = self.broken or error is not None
        if all(wire.is_lost for wire in self._wires) and not self._done.done():
            self._done.set_result(None)

    def _cut(self) -> None:
        for wire in self._wires:
            wire.abort()
