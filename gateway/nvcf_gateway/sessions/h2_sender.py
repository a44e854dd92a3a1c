"""Sending of an HTTP/2 endpoint: what waits on each stream, flow control, and fair turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from h2.exceptions import NoSuchStreamError, StreamClosedError

from nvcf_broker.wire import Wire
from nvcf_gateway.sessions.h2_protocol import Connection
from nvcf_gateway.sessions.routing import RawHeader

# How much of one stream is sent before the next stream has its turn.
TURN = 64 * 1024
JOINED = 4096


class Outgoing:
    """What waits to be sent on one stream: data, then trailers, then the end.

    `credit(n)` is called when n bytes have been sent or dropped.
    """

    __slots__ = ("chunks", "credit", "ended", "finished", "size", "trailers")

    def __init__(self, credit: Callable[[int], None]) -> None:
        self.chunks: deque[bytes | bytearray | memoryview] = deque()
        self.size = 0
        self.trailers: list[RawHeader] | None = None
        self.ended = False
        self.finished = False
        self.credit = credit

    def append(self, data: bytes) -> None:
        """Add data. Small pieces are joined: as objects they take many times their size."""
        self.size += len(data)
        last = self.chunks[-1] if self.chunks else None
        if isinstance(last, bytearray) and len(last) < JOINED:
            last += data
        else:
            self.chunks.append(bytearray(data) if len(data) < JOINED else data)

    def drop(self) -> None:
        """Drop what waits; its sender gets the credit back."""
        self.chunks.clear()
        size, self.size = self.size, 0
        if size:
            self.credit(size)


class Sender:
    """Sends the streams of one connection in turns.

    `finished(stream_id)` is called at the end of each, `data_sent()` for each frame of data.
    """

    def __init__(
        self,
        connection: Connection,
        wire: Wire,
        finished: Callable[[int], None],
        data_sent: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._wire = wire
        self._finished = finished
        self._data_sent = data_sent
        self._outgoing: dict[int, Outgoing] = {}
        # Streams with something to send that are not known to be blocked, in order of their turns.
        self._ready: dict[int, None] = {}
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self.closed = False

    def add(self, stream_id: int, outgoing: Outgoing) -> None:
        """Send what `outgoing` holds and gets on a stream."""
        self._outgoing[stream_id] = outgoing
        self._ready[stream_id] = None

    def more(self, stream_id: int) -> None:
        """Continue with a stream that has got something to send."""
        if stream_id in self._outgoing:
            self._ready[stream_id] = None
            self.wake()

    def unblock(self, stream_id: int) -> None:
        """Include a stream, whose window has grown, in the next pump."""
        if stream_id in self._outgoing:
            self._ready[stream_id] = None

    def unblock_all(self) -> None:
        """Include all streams in the next pump: the connection's window, or all windows, may have grown."""
        for stream_id in self._outgoing:
            self._ready.setdefault(stream_id, None)

    def forget(self, stream_id: int) -> None:
        """Drop what waits on a stream."""
        self._ready.pop(stream_id, None)
        outgoing = self._outgoing.pop(stream_id, None)
        if outgoing is not None:
            outgoing.drop()

    def close(self) -> None:
        """Send nothing more, and drop what waits on all streams."""
        self.closed = True
        self._ready.clear()
        outgoing, self._outgoing = self._outgoing, {}
        for each in outgoing.values():
            each.drop()

    def wake(self) -> None:
        """Pump after the current callback, so that one write covers everything it sends."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Send what flow control and the wire let through, each stream in turn."""
        self._scheduled = False
        if self.closed:
            return
        ready = self._ready
        while ready and not self._wire.writing_paused:
            stream_id = next(iter(ready))
            del ready[stream_id]
            try:
                again = self._send_turn(stream_id, self._outgoing[stream_id])
            except (StreamClosedError, NoSuchStreamError):
                self.forget(stream_id)
                continue
            if again:
                ready[stream_id] = None
        self.flush()

    def flush(self) -> None:
        """Write the frames that h2 has prepared."""
        data = self._connection.data_to_send()
        if data:
            self._wire.write(data)

    def _send_turn(self, stream_id: int, outgoing: Outgoing) -> bool:
        """Send one turn of a stream; return whether it may have another."""
        connection = self._connection
        left = TURN
        while outgoing.chunks and left > 0:
            window = connection.local_flow_control_window(stream_id)
            chunk = outgoing.chunks[0]
            size = min(len(chunk), window, connection.max_outbound_frame_size)
            if size <= 0:
                return False
            last = size == len(chunk) and len(outgoing.chunks) == 1
            final = last and outgoing.ended and outgoing.trailers is None
            if size == len(chunk):
                outgoing.chunks.popleft()
                # h2 takes any buffer, whatever its annotation says.
                connection.send_data(stream_id, memoryview(chunk), end_stream=final)
            else:
                view = memoryview(chunk)
                outgoing.chunks[0] = view[size:]
                connection.send_data(stream_id, view[:size])
            self._data_sent()
            outgoing.size -= size
            left -= size
            outgoing.credit(size)
            self.flush()
            if final:
                self._finish(stream_id, outgoing)
                return False
        if outgoing.chunks:
            return True
        if outgoing.ended:
            if outgoing.trailers is not None:
                connection.send_headers(stream_id, outgoing.trailers, end_stream=True)
            else:
                connection.end_stream(stream_id)
            self._finish(stream_id, outgoing)
        return False

    def _finish(self, stream_id: int, outgoing: Outgoing) -> None:
        outgoing.finished = True
        self.forget(stream_id)
        self._finished(stream_id)
