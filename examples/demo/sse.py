"""Decode an event stream (WHATWG HTML, section 9.2.6) while it arrives."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

# A stream that never ends a line is not an event stream.
MAX_LINE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    name: str
    data: str


class EventDecoder:
    """Decodes bytes, split anywhere, into complete events. Comments, ids and retry times are dropped.

    Raises `ValueError` for a line longer than a mebibyte.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._pending = ""
        self._name = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Event]:
        self._pending += self._decode(data)
        events = []
        while (line := self._next_line()) is not None:
            if event := self._take(line):
                events.append(event)
        if len(self._pending) > MAX_LINE:
            raise ValueError("a line of the event stream is too long")
        return events

    def _next_line(self) -> str | None:
        ends = [at for at in (self._pending.find("\n"), self._pending.find("\r")) if at >= 0]
        if not ends:
            return None
        end = min(ends)
        # A carriage return at the very end may be the first half of a CR LF.
        if self._pending[end] == "\r" and end + 1 == len(self._pending):
            return None
        line = self._pending[:end]
        width = 2 if self._pending.startswith("\r\n", end) else 1
        self._pending = self._pending[end + width :]
        return line

    def _take(self, line: str) -> Event | None:
        if not line:
            event = Event(self._name or "message", "\n".join(self._data)) if self._data else None
            self._name, self._data = "", []
            return event
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None
