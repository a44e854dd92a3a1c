"""One side of an HTTP/1.1 exchange: h11 for the grammar, a wire for the bytes."""

from __future__ import annotations

from collections.abc import Iterable

import h11

from nvcf_broker.wire import Wire

Event = (
    h11.Request
    | h11.InformationalResponse
    | h11.Response
    | h11.Data
    | h11.EndOfMessage
    | h11.ConnectionClosed
    | type[h11.PAUSED]
)

MAX_HEAD = 64 * 1024


def raw(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Header text as the bytes that it came in; h11 by itself takes only ASCII text."""
    return [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers
    ]


def text(event: h11.Request | h11.InformationalResponse | h11.Response) -> list[tuple[str, str]]:
    """Headers of an event as text, names as they were written."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()]


class H1Side:
    """A peer that speaks HTTP/1.1. `role` is ours: SERVER towards callers, CLIENT towards functions."""

    def __init__(self, wire: Wire, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self.wire = wire
        self.connection = h11.Connection(role, max_incomplete_event_size=MAX_HEAD)

    async def next(self) -> Event:
        """The next event. Raises h11.RemoteProtocolError and ConnectionError."""
        while True:
            event = self.connection.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value] # NEED_DATA is handled
            self.connection.receive_data(await self.wire.read())

    async def send(self, event: h11.Event) -> None:
        """Send an event at the peer's pace. Raises ConnectionError."""
        data = self.connection.send(event)
        if data:
            self.wire.write(data)
        await self.wire.drain()

    def release(self) -> None:
        """Give the wire back with everything h11 has not used."""
        trailing, _ = self.connection.trailing_data
        if trailing:
            self.wire.unread(trailing)
