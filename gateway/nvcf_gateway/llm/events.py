"""Whole server-sent events out of a stream of bytes."""

from __future__ import annotations

MAX_HELD_BYTES = 1024 * 1024
_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")


class WholeEvents:
    """Passes bytes on up to the end of the last whole event.

    An error event can then follow at any time. An event of more than `limit` bytes passes in parts.
    """

    __slots__ = ("_held", "_limit", "partial")

    def __init__(self, limit: int = MAX_HELD_BYTES) -> None:
        self._held = b""
        self._limit = limit
        self.partial = False
        """Whether a part of an event has passed whose end has not."""

    def feed(self, data: bytes) -> bytes:
        """Return what may pass."""
        held = self._held + data
        end = max(at + len(mark) if (at := held.rfind(mark)) >= 0 else 0 for mark in _BLANK_LINES)
        if end:
            self.partial = False
        if len(held) - end > self._limit:
            self.partial, end = True, len(held)
        self._held = held[end:]
        return held[:end]

    def rest(self) -> bytes:
        """Return what is held back, at the end of the stream."""
        held, self._held = self._held, b""
        return held
