"""One endpoint of an HTTP/2 connection over a wire: frames and flow control, without knowledge of sessions.

RFC 9113, by the library h2. Received bytes are credited back to their sender only when they have been passed
on. So the slower side sets the pace, and memory stays within the windows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

import h2.events as ev
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.exceptions import H2Error, NoSuchStreamError, ProtocolError, StreamClosedError, StreamIDTooLowError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from nvcf_broker.wire import Wire
from nvcf_gateway.sessions.h2_budget import EARNED_BY_DATA, REFUSAL, FrameBudget
from nvcf_gateway.sessions.h2_protocol import (
    CONNECTION_WINDOW,
    DEFAULT_WINDOW,
    MAX_FRAME,
    MAX_HEADER_LIST,
    MAX_STREAMS,
    STREAM_WINDOW,
    Connection,
    Events,
)
from nvcf_gateway.sessions.h2_sender import Outgoing, Sender
from nvcf_gateway.sessions.routing import RawHeader
from nvcf_gateway.sessions.turns import Turns

_log = logging.getLogger(__name__)

STALL_SECONDS = 60.0


class H2Endpoint:
    """A receiver of a wire's bytes. Every call from outside ends with all frames written."""

    def __init__(self, wire: Wire, events: Events, turns: Turns, *, client: bool) -> None:
        self._wire = wire
        self._events = events
        self._client = client
        self._connection = Connection(
            H2Configuration(
                client_side=client,
                header_encoding=None,
                # Outbound headers were checked when they came in at the other endpoint.
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._loop = asyncio.get_running_loop()
        self._budget = FrameBudget(self._loop.time(), preface=not client)
        if client:
            # A worker has shown the token of its tunnel.
            self._budget.admit()
        self._turns = turns
        # What arrived and waits for its turn. Nothing more is read meanwhile.
        self._backlog = b""
        self._stalled: asyncio.TimerHandle | None = None
        self._sender = Sender(self._connection, wire, self._on_sent, self._on_data_sent)
        self._settled = False
        self._highest = 0

    def start(self) -> None:
        """Send the preface and process what has arrived."""
        settings = {
            SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            SettingCodes.MAX_FRAME_SIZE: MAX_FRAME,
            SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
            SettingCodes.ENABLE_PUSH: 0,
        }
        if not self._client:
            del settings[SettingCodes.ENABLE_PUSH]
            # WebSocket over HTTP/2 (RFC 8441).
            settings[SettingCodes.ENABLE_CONNECT_PROTOCOL] = 1
        connection = self._connection
        connection.local_settings = Settings(client=self._client, initial_values=settings)
        connection.max_inbound_frame_size = MAX_FRAME
        connection.decoder.max_header_list_size = MAX_HEADER_LIST
        connection.initiate_connection()
        connection.increment_flow_control_window(CONNECTION_WINDOW - DEFAULT_WINDOW)
        self._sender.flush()
        self._wire.attach(self)

    # --- receiver of the wire

    def received(self, data: bytes) -> None:
        if self._sender.closed:
            return
        if self._backlog:
            self._backlog += data
            return
        self._backlog = self._process_turn(data)
        if self._backlog:
            self._wire.pause()
            self._turns.add(self._next_turn)

    def _next_turn(self) -> bool:
        if not self._sender.closed:
            self._backlog = self._process_turn(self._backlog)
            if self._backlog:
                return True
        self._wire.resume()
        return False

    def _process_turn(self, data: bytes) -> bytes:
        """Process one turn of `data`; return the rest, which waits for the next turn."""
        try:
            size = self._budget.take(data, self._loop.time())
        except ProtocolError as error:
            self._refuse(error)
            return b""
        self._process(data if size == len(data) else data[:size])
        return b"" if self._sender.closed else data[size:]

    def _process(self, data: bytes) -> None:
        try:
            happened = self._connection.receive_data(data)
        except (H2Error, ValueError, IndexError) as error:
            # h2 has prepared its GOAWAY already.
            self._fail(error)
            return
        for event in happened:
            handler = _HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event)
        self._sender.pump()
        self._watch_stall()
        if self._wire.congested:
            self._fail(ProtocolError("the peer sends and does not read"))

    def ended(self) -> None:
        if not self._sender.closed:
            self._events.on_eof()

    def lost(self, error: Exception | None) -> None:
        if not self._sender.closed:
            self._sender.close()
            self._events.on_lost(error)

    def writable(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self._sender.pump()
        self._watch_stall()

    def _watch_stall(self) -> None:
        """Limit how long a peer may read nothing: its streams hold memory, and their workers."""
        if self._stalled is None and self._wire.writing_paused:
            self._stalled = self._loop.call_later(STALL_SECONDS, self._on_stall)

    def _on_stall(self) -> None:
        self._stalled = None
        if self._wire.writing_paused and not self._sender.closed:
            self._fail(ProtocolError(f"the peer has read nothing for {STALL_SECONDS:g} s"))
            self._wire.abort()

    # --- events of h2

    def _on_request(self, event: ev.RequestReceived) -> None:
        stream_id = event.stream_id or 0
        self._highest = max(self._highest, stream_id)
        self._events.on_head(stream_id, _pairs(event.headers), event.stream_ended is not None)

    def _on_response(self, event: ev.ResponseReceived) -> None:
        self._events.on_head(event.stream_id or 0, _pairs(event.headers), event.stream_ended is not None)

    def _on_informational(self, event: ev.InformationalResponseReceived) -> None:
        self._events.on_informational(event.stream_id or 0, _pairs(event.headers))

    def _on_data(self, event: ev.DataReceived) -> None:
        data, stream_id = event.data or b"", event.stream_id or 0
        padding = (event.flow_controlled_length or 0) - len(data)
        if padding:
            self.credit(stream_id, padding)
        if data:
            self._events.on_data(stream_id, data)

    def _on_trailers(self, event: ev.TrailersReceived) -> None:
        self._events.on_end(event.stream_id or 0, _pairs(event.headers))

    def _on_stream_ended(self, event: ev.StreamEnded) -> None:
        self._events.on_end(event.stream_id or 0, None)

    def _on_reset(self, event: ev.StreamReset) -> None:
        stream_id = event.stream_id or 0
        self._sender.forget(stream_id)
        self._events.on_reset(stream_id, int(event.error_code or 0))
        self._events.on_room()

    def _on_window(self, event: ev.WindowUpdated) -> None:
        if event.stream_id:
            self._sender.unblock(event.stream_id)
        else:
            self._sender.unblock_all()

    def _on_settings(self, event: ev.RemoteSettingsChanged) -> None:
        self._settled = True
        self._sender.unblock_all()
        self._events.on_room()

    def _on_goaway(self, event: ev.ConnectionTerminated) -> None:
        self._events.on_goaway(event.last_stream_id or 0)

    def _on_data_sent(self) -> None:
        self._budget.earn(EARNED_BY_DATA)

    def _on_sent(self, stream_id: int) -> None:
        self._events.on_finished(stream_id)
        self._events.on_room()

    # --- sending

    def room(self) -> bool:
        """Whether the peer lets one more stream be opened; False before its settings have arrived."""
        connection = self._connection
        return (
            self._settled
            and connection.open_outbound_streams < connection.remote_settings.max_concurrent_streams
        )

    def open_stream(self, headers: Iterable[RawHeader], outgoing: Outgoing) -> int:
        """Send the head of a request on a new stream; `outgoing` follows, unless it is empty and ended."""
        stream_id = self._connection.get_next_available_stream_id()
        done = outgoing.ended and not outgoing.chunks and outgoing.trailers is None
        self._connection.send_headers(stream_id, headers, end_stream=done)
        outgoing.finished = done
        if not done:
            self._sender.add(stream_id, outgoing)
        self._sender.wake()
        return stream_id

    def send_head(
        self, stream_id: int, headers: Iterable[RawHeader], outgoing: Outgoing | None, *, end: bool = False
    ) -> None:
        """Send the head of a response; `outgoing` (None for an informational one) follows."""
        try:
            self._connection.send_headers(stream_id, headers, end_stream=end)
        except (StreamClosedError, StreamIDTooLowError):
            # Reset by the peer, perhaps in the same bytes that opened it; h2 may have forgotten it already.
            return
        if outgoing is not None:
            outgoing.finished = end
            if not end:
                self._sender.add(stream_id, outgoing)
        self._sender.wake()

    def more(self, stream_id: int) -> None:
        """Continue with a stream whose `Outgoing` has got something to send."""
        self._sender.more(stream_id)

    def credit(self, stream_id: int, size: int) -> None:
        """Let the peer send `size` more bytes: so many have been passed on."""
        if not self._sender.closed:
            self._connection.acknowledge_received_data(size, stream_id)
            self._sender.wake()

    def reset(self, stream_id: int, code: int) -> None:
        """Reset a stream."""
        self._sender.forget(stream_id)
        if self._sender.closed:
            return
        try:
            self._connection.reset_stream(stream_id, code)
        except (StreamClosedError, NoSuchStreamError):
            return
        self._sender.wake()

    # --- what the peer may cost

    def admit(self) -> None:
        """Trust the peer with more frames: it has made a call with a valid key."""
        self._budget.admit()

    def charge_refusal(self) -> None:
        """Count a call that was refused, and close the connection of a peer with too many."""
        try:
            self._budget.spend(REFUSAL, self._loop.time())
        except ProtocolError as error:
            self._refuse(error)

    # --- leaving

    def announce_leaving(self) -> None:
        """Ask the peer to open no further streams; open ones go on."""
        if not self._sender.closed:
            self._sender.flush()
            self._wire.write(GoAwayFrame(0, last_stream_id=self._highest).serialize())

    def close(self, code: ErrorCodes = ErrorCodes.NO_ERROR, *, broken: bool = False) -> None:
        """Close the connection; with `broken` the peer sees a lost connection. No event follows."""
        if self._sender.closed:
            return
        self._sender.close()
        if broken:
            self._wire.abort()
            return
        self._connection.close_connection(code)
        self._sender.flush()
        self._wire.close()

    def _refuse(self, error: ProtocolError) -> None:
        if not self._sender.closed:
            self._connection.close_connection(error.error_code)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        _log.info("HTTP/2 connection closed: %s", error)
        self._sender.flush()
        self._sender.close()
        self._wire.close()
        self._events.on_lost(error)


def _pairs(headers: Iterable[tuple[bytes | str, bytes | str]] | None) -> list[RawHeader]:
    # With header_encoding=None h2 leaves them as the bytes that came in.
    return [(name, value) for name, value in headers or ()]  # type: ignore[misc]


_HANDLERS: dict[type[ev.Event], Callable[[H2Endpoint, ev.Event], None]] = {
    ev.RequestReceived: H2Endpoint._on_request,  # type: ignore[dict-item]
    ev.ResponseReceived: H2Endpoint._on_response,  # type: ignore[dict-item]
    ev.InformationalResponseReceived: H2Endpoint._on_informational,  # type: ignore[dict-item]
    ev.DataReceived: H2Endpoint._on_data,  # type: ignore[dict-item]
    ev.TrailersReceived: H2Endpoint._on_trailers,  # type: ignore[dict-item]
    ev.StreamEnded: H2Endpoint._on_stream_ended,  # type: ignore[dict-item]
    ev.StreamReset: H2Endpoint._on_reset,  # type: ignore[dict-item]
    ev.WindowUpdated: H2Endpoint._on_window,  # type: ignore[dict-item]
    ev.RemoteSettingsChanged: H2Endpoint._on_settings,  # type: ignore[dict-item]
    ev.ConnectionTerminated: H2Endpoint._on_goaway,  # type: ignore[dict-item]
}
