"""HTTP/1.1 for sessions: h11 for the grammar, a wire for the bytes, and headers that change on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import h11

from nvcf_broker.wire import Wire
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.sessions.routing import Header, SessionCall, encode_headers
from nvcf_proto.headers import strip_hop_by_hop

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
EVENTS_PER_TURN = 16


class H1Peer:
    """A peer that speaks HTTP/1.1. `role` is ours: SERVER towards callers, CLIENT towards functions."""

    def __init__(self, wire: Wire, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        self.wire = wire
        self._events = 0
        self.connection = h11.Connection(role, max_incomplete_event_size=MAX_HEAD)

    @property
    def is_done(self) -> bool:
        """Whether both directions have completed their message."""
        return self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE

    async def next(self) -> Event:
        """Return the next event. Raises h11.RemoteProtocolError and ConnectionError."""
        self._events += 1
        if self._events % EVENTS_PER_TURN == 0:
            # Bytes that are here already make no call wait, and they may be thousands of tiny chunks.
            await asyncio.sleep(0)
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
        """Put the bytes that h11 has not used back onto the wire."""
        trailing, _ = self.connection.trailing_data
        if trailing:
            self.wire.unread(trailing)


def decode_headers(event: h11.Request | h11.InformationalResponse | h11.Response) -> list[Header]:
    """Return the headers of an event as text, with names as they were written."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers.raw_items()]


def function_request(method: str, target: bytes, headers: list[Header]) -> h11.Request:
    """Return a request for the function. Raises HttpProblem 400 if it cannot be written as HTTP/1.1."""
    try:
        return h11.Request(method=method, target=target, headers=encode_headers(headers))
    except h11.LocalProtocolError as error:
        raise HttpProblem(400, str(error)) from None


def wants_upgrade(headers: Iterable[Header]) -> str | None:
    """Return the protocol that a request asks to switch to; None without one, and for h2c."""
    upgrade, connection = "", ""
    for name, value in headers:
        lowered = name.lower()
        if lowered == "upgrade":
            upgrade = value.strip()
        elif lowered == "connection":
            connection += "," + value.lower()
    asked = "upgrade" in (token.strip() for token in connection.split(","))
    return upgrade if asked and upgrade and upgrade.lower() != "h2c" else None


def request_headers(call: SessionCall, additions: list[Header], upgrade: str | None) -> list[Header]:
    """Return the headers of a request as the function receives them."""
    headers = [*strip_hop_by_hop(call.headers), *additions]
    if upgrade is not None:
        headers += [("Connection", "Upgrade"), ("Upgrade", upgrade)]
    if any(name.lower() == "transfer-encoding" for name, _ in call.headers):
        headers.append(("Transfer-Encoding", "chunked"))
    return headers


def response_headers(
    headers: list[Header], additions: list[Header], *, switched: bool, accepted: str | None = None
) -> list[Header]:
    """Return the headers of a response as the caller receives them."""
    kept = strip_hop_by_hop(headers)
    names = {name.lower() for name, _ in headers}
    if switched:
        kept += [(name, value) for name, value in headers if name.lower() == "upgrade"]
        kept.append(("Connection", "Upgrade"))
        if accepted is not None and "sec-websocket-protocol" not in names:
            kept.append(("Sec-WebSocket-Protocol", accepted))
    elif "transfer-encoding" in names:
        kept.append(("Transfer-Encoding", "chunked"))
    return [*kept, *additions]
