"""HTTP/2 for sessions: limits, h2 with our changes, and the events of an endpoint."""

from __future__ import annotations

from typing import Protocol

import h2.events as ev
import hyperframe.frame
from h2.connection import H2Connection
from hyperframe.frame import Frame, GoAwayFrame

from nvcf_gateway.sessions.routing import RawHeader

STREAM_WINDOW = 1024 * 1024
# So many stalled streams do not yet block the other streams of their connection.
CONNECTION_WINDOW = 32 * STREAM_WINDOW
MAX_FRAME = 256 * 1024
MAX_STREAMS = 1024
MAX_HEADER_LIST = 64 * 1024
DEFAULT_WINDOW = 65_535
RESET_BURST = 1000.0
RESETS_PER_SECOND = 33.0
"""The limits of nghttp2: far more than clients cancel, far fewer than would keep a server busy."""


def _short(data: bytes | None) -> str:
    return "None" if data is None else f"<{len(data)} bytes>"


# h2 formats each frame for a logger that drops it; the payload in hexadecimal took half of the time.
hyperframe.frame._raw_data_repr = _short


class Connection(H2Connection):
    """h2's connection; streams that are open go on after a GOAWAY (RFC 9113 section 6.8)."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[ev.Event]]:
        event = ev.ConnectionTerminated()
        event.error_code = frame.error_code
        event.last_stream_id = frame.last_stream_id
        event.additional_data = frame.additional_data or None
        return [], [event]


class ResetBucket:
    """Token bucket against rapid reset (CVE-2023-44487): streams opened only to be reset.

    It counts resets of calls that were in flight. Times are seconds of any steady clock.
    """

    def __init__(self, now: float, burst: float = RESET_BURST, per_second: float = RESETS_PER_SECOND) -> None:
        self._burst = self._left = burst
        self._per_second = per_second
        self._filled = now

    def acquire(self, now: float) -> bool:
        """Count one reset; return False when it is one too many."""
        self._left = min(self._burst, self._left + (now - self._filled) * self._per_second)
        self._filled = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Events(Protocol):
    """Receiver of an endpoint's events. Stream ids are those of the endpoint's connection."""

    def on_head(self, stream_id: int, headers: list[RawHeader], ended: bool) -> None:
        """Handle the head of a request or response; `ended` when nothing follows it."""

    def on_informational(self, stream_id: int, headers: list[RawHeader]) -> None:
        """Handle the head of a response with status 1xx."""

    def on_data(self, stream_id: int, data: bytes) -> None:
        """Handle data, and credit it with `H2Endpoint.credit` when it has been passed on."""

    def on_end(self, stream_id: int, trailers: list[RawHeader] | None) -> None:
        """Handle the end of the peer's half; called again after trailers and after a head that ended."""

    def on_reset(self, stream_id: int, code: int) -> None:
        """Handle that the peer has reset the stream."""

    def on_finished(self, stream_id: int) -> None:
        """Handle that all of the outgoing half has been sent."""

    def on_room(self) -> None:
        """Handle that more streams may be opened."""

    def on_goaway(self, last_stream_id: int) -> None:
        """Handle that the peer takes no further streams."""

    def on_eof(self) -> None:
        """Handle that the peer sends nothing more."""

    def on_lost(self, error: Exception | None) -> None:
        """Handle that the connection is gone. The last event."""
