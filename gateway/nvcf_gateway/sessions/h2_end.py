"""One end of an HTTP/2 connection over a wire: frames, flow control and fair sending, not a word of sessions.

RFC 9113, by the library h2. What is received is credited back to its sender only when it has been passed on,
so that the slower side sets the pace and memory stays within the windows.
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
from nvcf_gateway.sessions.h2_parts import (
    CONNECTION_WINDOW,
    DEFAULT_WINDOW,
    MAX_FRAME,
    MAX_HEADER_LIST,
    MAX_STREAMS,
    STREAM_WINDOW,
    TURN,
    Connection,
    Events,
    Outgoing,
    RawHeader,
)

_log = logging.getLogger(__name__)


class H2End:
    """A receiver of a wire's bytes. Every entry from outside ends with everything written."""

    def __init__(self, wire: Wire, events: Events, *, client: bool) -> None:
        self._wire = wire
        self._events = events
        self._client = client
        self._connection = Connection(
            H2Configuration(
                client_side=client,
                header_encoding=None,
                # What goes out has come in, and was checked there.
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._outgoing: dict[int, Outgoing] = {}
        # Streams with something to send that are not known to be blocked, in order of their turns.
        self._ready: dict[int, None] = {}
        self._closed = False
        self._settled = False
        self._highest = 0
        self._loop = asyncio.get_running_loop()
        self._scheduled = False

    def start(self) -> None:
        """Send the preface and take in what has arrived."""
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
        self._write()
        self._wire.attach(self)

    # --- Receiver

    def received(self, data: bytes) -> None:
        """Bytes from the peer."""
        if self._closed:
            return
        try:
            happened = self._connection.receive_data(data)
        except (H2Error, ValueError, IndexError) as error:
            # h2 has put its GOAWAY into the output already.
            self._fail(error)
            return
        for event in happened:
            handler = _HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event)
        self.pump()
        if self._connection.buffered > MAX_FRAME + TURN:
            self._fail(ProtocolError("a frame is larger than announced"))
        elif self._wire.congested:
            self._fail(ProtocolError("the peer sends and does not read"))

    def ended(self) -> None:
        """The peer closed its half."""
        if not self._closed:
            self._events.on_eof()

    def lost(self, error: Exception | None) -> None:
        """The wire is gone."""
        if not self._closed:
            self._closed = True
            self._drop_all()
            self._events.on_lost(error)

    def writable(self) -> None:
        """The wire takes more."""
        self.pump()

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
        self._forget(stream_id)
        self._events.on_reset(stream_id, int(event.error_code or 0))
        self._events.on_room()

    def _on_window(self, event: ev.WindowUpdated) -> None:
        if event.stream_id:
            if event.stream_id in self._outgoing:
                self._ready[event.stream_id] = None
        else:
            self._all_ready()

    def _on_settings(self, event: ev.RemoteSettingsChanged) -> None:
        self._settled = True
        self._all_ready()
        self._events.on_room()

    def _on_goaway(self, event: ev.ConnectionTerminated) -> None:
        self._events.on_goaway(event.last_stream_id or 0)

    # --- sending

    @property
    def is_open(self) -> bool:
        """Whether anything can be sent."""
        return not self._closed

    def room(self) -> bool:
        """Whether the peer lets one more stream be opened; before its settings came nobody knows."""
        connection = self._connection
        return (
            self._settled
            and connection.open_outbound_streams < connection.remote_settings.max_concurrent_streams
        )

    def open_stream(self, headers: Iterable[RawHeader], outgoing: Outgoing) -> int:
        """Send a request's head on a new stream; `outgoing` follows, unless it is finished thereby."""
        stream_id = self._connection.get_next_available_stream_id()
        done = outgoing.ended and not outgoing.chunks and outgoing.trailers is None
        self._connection.send_headers(stream_id, headers, end_stream=done)
        outgoing.finished = done
        if not done:
            self._outgoing[stream_id] = outgoing
            self._ready[stream_id] = None
        self._wake()
        return stream_id

    def send_head(
        self, stream_id: int, headers: Iterable[RawHeader], outgoing: Outgoing | None, *, end: bool = False
    ) -> None:
        """Send a response's head; `outgoing` (None for an informational one) follows."""
        try:
            self._connection.send_headers(stream_id, headers, end_stream=end)
        except (StreamClosedError, StreamIDTooLowError):
            # Reset by the peer, in the very bytes that opened it perhaps; h2 may have forgotten it already.
            return
        if outgoing is not None:
            outgoing.finished = end
            if not end:
                self._outgoing[stream_id] = outgoing
                self._ready[stream_id] = None
        self._wake()

    def more(self, stream_id: int) -> None:
        """The stream's Outgoing has got something."""
        if stream_id in self._outgoing:
            self._ready[stream_id] = None
            self._wake()

    def credit(self, stream_id: int, size: int) -> None:
        """`size` received bytes have been passed on."""
        if not self._closed:
            self._connection.acknowledge_received_data(size, stream_id)
            self._wake()

    def reset(self, stream_id: int, code: int) -> None:
        """Give a stream up."""
        self._forget(stream_id)
        if self._closed:
            return
        try:
            self._connection.reset_stream(stream_id, code)
        except (StreamClosedError, NoSuchStreamError):
            return
        self._wake()

    def _wake(self) -> None:
        """Pump once everything has been said that is being said now."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.pump)

    def pump(self) -> None:
        """Send what flow control and the wire let through, each stream in turn."""
        self._scheduled = False
        if self._closed:
            return
        ready = self._ready
        while ready and not self._wire.writing_paused:
            stream_id = next(iter(ready))
            del ready[stream_id]
            try:
                again = self._send_turn(stream_id, self._outgoing[stream_id])
            except (StreamClosedError, NoSuchStreamError):
                self._forget(stream_id)
                continue
            if again:
                ready[stream_id] = None
        self._write()

    def _send_turn(self, stream_id: int, outgoing: Outgoing) -> bool:
        """One turn of a stream; whether it may have another."""
        connection = self._connection
        budget = TURN
        while outgoing.chunks and budget > 0:
            window = connection.local_flow_control_window(stream_id)
            chunk = outgoing.chunks[0]
            size = min(len(chunk), window, connection.max_outbound_frame_size)
            if size <= 0:
                return False
            last = size == len(chunk) and len(outgoing.chunks) == 1
            final = last and outgoing.ended and outgoing.trailers is None
            if size == len(chunk):
                outgoing.chunks.popleft()
                connection.send_data(stream_id, chunk, end_stream=final)
            else:
                view = memoryview(chunk)
                outgoing.chunks[0] = view[size:]
                connection.send_data(stream_id, view[:size])
            outgoing.size -= size
            budget -= size
            outgoing.credit(size)
            self._write()
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
        self._forget(stream_id)
        self._events.on_finished(stream_id)
        self._events.on_room()

    def _forget(self, stream_id: int) -> None:
        self._ready.pop(stream_id, None)
        outgoing = self._outgoing.pop(stream_id, None)
        if outgoing is not None:
            outgoing.drop()

    def _all_ready(self) -> None:
        for stream_id in self._outgoing:
            self._ready.setdefault(stream_id, None)

    def _drop_all(self) -> None:
        self._ready.clear()
        outgoing, self._outgoing = self._outgoing, {}
        for each in outgoing.values():
            each.drop()

    def _write(self) -> None:
        data = self._connection.data_to_send()
        if data:
            self._wire.write(data)

    # --- leaving

    def announce_leaving(self) -> None:
        """Tell the peer to open no further streams; those that are open go on."""
        if not self._closed:
            self._write()
            self._wire.write(GoAwayFrame(0, last_stream_id=self._highest).serialize())

    def close(self, code: ErrorCodes = ErrorCodes.NO_ERROR, *, broken: bool = False) -> None:
        """Close the connection; `broken` lets the peer see it as an accident. No event follows."""
        if self._closed:
            return
        self._closed = True
        self._drop_all()
        if broken:
            self._wire.abort()
            return
        self._connection.close_connection(code)
        self._write()
        self._wire.close()

    def _fail(self, error: Exception) -> None:
        _log.info("HTTP/2 connection given up: %s", error)
        self._closed = True
        self._write()
        self._drop_all()
        self._wire.close()
        self._events.on_lost(error)


def _pairs(headers: Iterable[tuple[bytes | str, bytes | str]] | None) -> list[RawHeader]:
    # header_encoding=None leaves them as the bytes they came in.
    return [(name, value) for name, value in headers or ()]  # type: ignore[misc]


_HANDLERS: dict[type[ev.Event], Callable[[H2End, ev.Event], None]] = {
    ev.RequestReceived: H2End._on_request,  # type: ignore[dict-item]
    ev.ResponseReceived: H2End._on_response,  # type: ignore[dict-item]
    ev.InformationalResponseReceived: H2End._on_informational,  # type: ignore[dict-item]
    ev.DataReceived: H2End._on_data,  # type: ignore[dict-item]
    ev.TrailersReceived: H2End._on_trailers,  # type: ignore[dict-item]
    ev.StreamEnded: H2End._on_stream_ended,  # type: ignore[dict-item]
    ev.StreamReset: H2End._on_reset,  # type: ignore[dict-item]
    ev.WindowUpdated: H2End._on_window,  # type: ignore[dict-item]
    ev.RemoteSettingsChanged: H2End._on_settings,  # type: ignore[dict-item]
    ev.ConnectionTerminated: H2End._on_goaway,  # type: ignore[dict-item]
}
