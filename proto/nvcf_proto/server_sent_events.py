"""Whole server-sent events out of a stream of bytes. No I/O.

Format: "Server-sent events" of the HTML Living Standard. An empty line ends an event; lines end with CRLF, LF
or CR.
"""

from __future__ import annotations

MAX_HELD_BYTES = 1024 * 1024
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r")
_LONGEST_END = 3


class WholeEvents:
    """Passes bytes on up to the end of the last whole event, so that an error event can follow at any time.

    An event of more than `limit` bytes passes in parts.
    """

    __slots__ = ("_held", "_limit", "events", "partial")

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self._held = bytearray()
        self._limit = limit
        self.partial = False
        """Whether a part of an event has passed whose end has not."""
        self.events = 0
        """Ends of events that have passed."""

    def feed(self, data: bytes) -> bytes:
        """Return what may pass."""
        held = self._held
        # There is no end in what was held back, but one may have begun there.
        at = max(0, len(held) - _LONGEST_END + 1)
        held += data
        end = max(place + len(mark) if (place := held.rfind(mark, at)) >= 0 else 0 for mark in _ENDS)
        if end:
            self.partial = False
        if len(held) - end > self._limit:
            self.partial, end = True, len(held)
        whole = bytes(held[:end])
        del held[:end]
        self.events += sum(map(whole.count, _ENDS))
        return whole

    def rest(self) -> bytes:
        """Return what is held back, at the end of the stream."""
        held, self._held = bytes(self._held), bytearray()
        return held
