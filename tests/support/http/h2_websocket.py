"""A WebSocket over HTTP/2 caller (RFC 8441): h2 for the connection, websockets' own frames on a stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

Header = tuple[str, str]


class Stream:
    """One stream: its answer's head, and the WebSocket on it."""

    def __init__(self, caller: H2WebSockets, number: int) -> None:
        self._caller = caller
        self.number = number
        self.head: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self.body = b""
        self.frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        self.reset: int | None = None
        self.ended = asyncio.Event()
        self._protocol = Protocol(Side.CLIENT, max_size=None)
        self._window = asyncio.Event()

    async def status(self) -> int:
        """Of the answer."""
        return int((await self.head)[":status"])

    async def send(self, message: bytes | str) -> None:
        """One message."""
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        await self.flush()

    async def close(self, code: int = 1000) -> None:
        """Begin the closing handshake."""
        self._protocol.send_close(code)
        await self.flush()

    async def answer_close(self) -> None:
        """Wait for the peer's closing frame; the protocol has its answer ready."""
        async with asyncio.timeout(60):
            while (frame := await self.frames.get()) is not None and frame.opcode is not Opcode.CLOSE:
                pass
        await self.flush()

    async def recv(self) -> bytes:
        """The next message, of one frame."""
        async with asyncio.timeout(60):
            while True:
                frame = await self.frames.get()
                assert frame is not None, "the stream ended"
                if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
                    return bytes(frame.data)

    async def flush(self) -> None:
        """Send the protocol's bytes as far as flow control lets them, then the rest."""
        for data in self._protocol.data_to_send():
            await self._caller.send(self.number, data)

    def arrived(self, data: bytes) -> None:
        """Part of the answer."""
        if self.head.done() and self.head.result()[":status"] != "200":
            self.body += data
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            assert isinstance(event, Frame)
            self.frames.put_nowait(event)


class H2WebSockets:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.connection = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.streams: dict[int, Stream] = {}
        self.settled = asyncio.Event()
        self._progress = asyncio.Event()
        self.paused = asyncio.Event()
        self.paused.set()

    async def run(self) -> None:
        """Take in what the gateway sends."""
        self.connection.initiate_connection()
        self.write()
        while data := await self._reader.read(65536):
            await self.paused.wait()
            for event in self.connection.receive_data(data):
                self._take(event)
            self.write()
            self._progress.set()

    def _take(self, event: object) -> None:
        self.settled.set()
        number = getattr(event, "stream_id", None)
        stream = self.streams.get(number or 0)
        if isinstance(event, ConnectionTerminated):
            for each in self.streams.values():
                each.ended.set()
        elif stream is None:
            return
        elif isinstance(event, ResponseReceived):
            stream.head.set_result(dict(event.headers))  # type: ignore[arg-type] # text, by the configuration
        elif isinstance(event, DataReceived):
            self.connection.acknowledge_received_data(event.flow_controlled_length or 0, stream.number)
            stream.arrived(event.data or b"")
        elif isinstance(event, StreamEnded | StreamReset):
            if isinstance(event, StreamReset):
                stream.reset = int(event.error_code or 0)
            stream.ended.set()
            stream.frames.put_nowait(None)

    def open(self, path: str, headers: Iterable[Header], protocol: str = "websocket") -> Stream:
        """Ask for a WebSocket."""
        number = self.connection.get_next_available_stream_id()
        stream = self.streams[number] = Stream(self, number)
        pseudo = [
            (":method", "CONNECT"), (":protocol", protocol), (":scheme", "http"), (":path", path),
            (":authority", "gateway"),
        ]  # fmt: skip
        self.connection.send_headers(number, [*pseudo, ("sec-websocket-version", "13"), *headers])
        self.write()
        return stream

    async def send(self, number: int, data: bytes) -> None:
        """Data at the gateway's pace."""
        async with asyncio.timeout(60):
            while data:
                room = self.connection.local_flow_control_window(number)
                size = min(len(data), room, self.connection.max_outbound_frame_size)
                if size:
                    self.connection.send_data(number, data[:size])
                    data = data[size:]
                    self.write()
                else:
                    self._progress.clear()
                    await self._progress.wait()

    def write(self) -> None:
        """What h2 has to say."""
        self._writer.write(self.connection.data_to_send())


@contextlib.asynccontextmanager
async def h2_websockets(address: str) -> AsyncIterator[H2WebSockets]:
    """Open a connection and wait for the settings of the peer."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    caller = H2WebSockets(reader, writer)
    running = asyncio.create_task(caller.run())
    try:
        async with asyncio.timeout(10):
            await caller.settled.wait()
        yield caller
    finally:
        running.cancel()
        await asyncio.wait({running})
        writer.close()
        if not running.cancelled() and (error := running.exception()) is not None:
            raise error
