"""Two connections joined into one: bytes, ends and pace of each become those of the other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import cast

WRITE_HIGH_WATER = 512 * 1024
HELD_BYTES = 256 * 1024
HALF_CLOSED_SECONDS = 60.0

_KEEPALIVE = (
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 30),
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 3),
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 60_000),
    ("TCP_NODELAY", socket.IPPROTO_TCP, 1),
)


class Wire(asyncio.Protocol):
    """One connection. Until it is joined, what arrives is kept, and reading pauses at `HELD_BYTES`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.held = bytearray()
        self.at_eof = False
        self.lost = False
        self.arrived = asyncio.Event()
        self._joint: Joint | None = None
        self._paused = False
        self._blocked = False

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        sock = transport.get_extra_info("socket")
        for name, level, value in _KEEPALIVE:
            option = getattr(socket, name, None)
            if option is not None and sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(level, option, value)

    def data_received(self, data: bytes) -> None:
        if self._joint is not None:
            self._joint.pass_on(self, data)
            return
        self.held += data
        self.arrived.set()
        if len(self.held) >= HELD_BYTES:
            self.pause()

    def eof_received(self) -> bool:
        self.at_eof = True
        self.arrived.set()
        if self._joint is not None:
            self._joint.ended(self)
        # TLS cannot be half closed.
        return self.transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self.arrived.set()
        if self._joint is not None:
            self._joint.lost(self, exc)

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        if self._joint is not None:
            self._joint.other(self).resume()

    # --- use

    @property
    def blocked(self) -> bool:
        """Whether the peer takes nothing at the moment."""
        return self._blocked

    def join(self, joint: Joint) -> None:
        """From here on everything goes to `joint`, what was kept first."""
        self._joint = joint
        held, self.held = bytes(self.held), bytearray()
        if held:
            joint.pass_on(self, held)
        self.resume()
        if self.lost:
            joint.lost(self, None)
        elif self.at_eof:
            joint.ended(self)

    def pause(self) -> None:
        """Read nothing until `resume`."""
        if not self._paused and not self.lost:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if self._paused and not self.lost:
            self._paused = False
            self.transport.resume_reading()

    def end(self) -> None:
        """Send nothing more; a connection that cannot be half closed is closed."""
        if self.lost:
            return
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        with contextlib.suppress(OSError):
            self.transport.write_eof()

    def close(self) -> None:
        """Send what waits, then close."""
        if not self.lost:
            self.transport.close()

    def abort(self) -> None:
        """Cut the connection, so that the peer sees an accident (RST)."""
        if self.lost:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class Joint:
    """Joins two wires until both are closed. `first_ended` is the one whose peer closed first, `broken`
    whether that was an accident.

    What the function says before its client has spoken waits for that. In HTTP of every version the client
    speaks first, but HTTP/2 servers do not wait for it, and a proxy that takes its connection over after its
    answer to CONNECT may lose what comes in between.
    """

    def __init__(self, gateway: Wire, function: Wire) -> None:
        self._loop = asyncio.get_running_loop()
        self._wires = (gateway, function)
        self._done = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.first_ended: Wire | None = None
        self.broken = False
        self._early: bytearray | None = bytearray()
        gateway.join(self)
        function.join(self)

    async def run(self) -> None:
        """Until both are closed; they are cut when this is cancelled."""
        try:
            await self._done.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._cut()

    def other(self, wire: Wire) -> Wire:
        """The far side of `wire`."""
        return self._wires[1] if wire is self._wires[0] else self._wires[0]

    def pass_on(self, source: Wire, data: bytes) -> None:
        """Bytes from `source`'s peer."""
        sink = self.other(source)
        if self._early is not None:
            if source is self._wires[1]:
                self._early += data
                if len(self._early) >= HELD_BYTES:
                    source.pause()
                return
            self._open()
        if not sink.lost:
            sink.transport.write(data)
            if sink.blocked:
                source.pause()

    def _open(self) -> None:
        """Let the function be heard."""
        early, self._early = self._early, None
        gateway, function = self._wires
        if early and not gateway.lost:
            gateway.transport.write(early)
        if not gateway.blocked:
            function.resume()

    def ended(self, source: Wire) -> None:
        """`source`'s peer sends nothing more."""
        self._open()
        if self.first_ended is None:
            self.first_ended = source
            self._timer = self._loop.call_later(HALF_CLOSED_SECONDS, self._cut)
        self.other(source).end()
        if all(wire.at_eof for wire in self._wires):
            for wire in self._wires:
                wire.transport.close()

    def lost(self, source: Wire, error: Exception | None) -> None:
        """`source` is gone."""
        self._open()
        if self.first_ended is None:
            self.first_ended, self.broken = source, error is not None
        other = self.other(source)
        if not other.lost:
            if error is None:
                other.transport.close()
            else:
                other.abort()
        if all(wire.lost for wire in self._wires):
            self._done.set()

    def _cut(self) -> None:
        for wire in self._wires:
            wire.abort()
