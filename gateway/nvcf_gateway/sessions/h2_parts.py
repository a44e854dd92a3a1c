"""The parts of an HTTP/2 end: limits, h2 as this package needs it, what waits to be sent, what happens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import h2.events as ev
import hyperframe.frame
from h2.connection import H2Connection
from hyperframe.frame import Frame, GoAwayFrame

RawHeader = tuple[bytes, bytes]

STREAM_WINDOW = 1024 * 1024
# As many fully stalled streams do not yet hold up the others of their connection.
CONNECTION_WINDOW = 32 * STREAM_WINDOW
MAX_FRAME = 256 * 1024
MAX_STREAMS = 1024
MAX_HEADER_LIST = 64 * 1024
DEFAULT_WINDOW = 65_535
# How much of one stream goes out before the next one has its turn.
TURN = 64 * 1024


def _short(data: bytes | None) -> str:
    return "None" if data is None else f"<{len(data)} bytes>"


# h2 describes each frame to a logger that does not listen; the payload in hexadecimal took half of the time.
hyperframe.frame._raw_data_repr = _short


class Connection(H2Connection):
    """h2 takes a GOAWAY for the end; RFC 9113 section 6.8 lets the streams that are open go on."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[ev.Event]]:
        event = ev.ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        event.additional_data = frame.additional_data or None
        return [], [event]

    @property
    def buffered(self) -> int:
        """Bytes of a frame that is not complete: h2 looks at a frame's length only when it has all of it."""
        return len(self.incoming_buffer._data)


class Outgoing:
    """What waits to be sent on one stream: data, then trailers, then the end.

    `credit(n)` is called when n bytes have been passed on (or dropped).
    """

    __slots__ = ("chunks", "credit", "ended", "finished", "size", "trailers")

    def __init__(self, credit: Callable[[int], None]) -> None:
        self.chunks: deque[bytes | memoryview] = deque()
        self.size = 0
        self.trailers: list[RawHeader] | None = None
        self.ended = False
        self.finished = False
        self.credit = credit

    def drop(self) -> None:
        """Forget what waits; its sender gets the credit back."""
        self.chunks.clear()
        size, self.size = self.size, 0
        if size:
            self.credit(size)


class Events(Protocol):
    """What happens at an end, told to the relay. Stream numbers are this end's."""

    def on_head(self, stream_id: int, headers: list[RawHeader], ended: bool) -> None:
        """A request's or response's head; `ended` when nothing follows it."""

    def on_informational(self, stream_id: int, headers: list[RawHeader]) -> None:
        """A response's head of status 1xx."""

    def on_data(self, stream_id: int, data: bytes) -> None:
        """Data; credit it with `H2End.credit`."""

    def on_end(self, stream_id: int, trailers: list[RawHeader] | None) -> None:
        """The peer has ended its half; told a second time after trailers and after a head that ended."""

    def on_reset(self, stream_id: int, code: int) -> None:
        """The peer has given the stream up."""

    def on_finished(self, stream_id: int) -> None:
        """Everything of the outgoing half has been sent."""

    def on_room(self) -> None:
        """More streams may be opened."""

    def on_goaway(self, last_stream_id: int) -> None:
        """The peer takes no further streams."""

    def on_eof(self) -> None:
        """The peer sends nothing more."""

    def on_lost(self, error: Exception | None) -> None:
        """The connection is gone. The last event."""
