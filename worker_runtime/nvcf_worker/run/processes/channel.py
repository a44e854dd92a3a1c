"""The channel between a worker and a child process: frames over a socket pair, in an event loop.

A frame is a head of 9 bytes (payload size, kind, number of the request; big-endian) and the payload. Payloads
may be pickled, because both ends are processes of the same worker that run the same code.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import struct
from collections.abc import Callable
from typing import cast

from nvcf_worker.errors import ChannelError

CHANNEL_FD = "NVCF_WORKER_CHANNEL_FD"
"""Internal: the child's inherited end of the socket pair."""

HEAD = struct.Struct("!IBI")
PIECE = 256 * 1024
"""Maximum bytes of a body in one frame, so that one body does not block the other requests for long."""

WINDOW = 512 * 1024
"""Bytes of one body that may be on the way before the reader asks for more."""

MAX_PAYLOAD = 64 * 1024 * 1024


def is_child() -> bool:
    """Whether a worker has started this process to run its handler."""
    return CHANNEL_FD in os.environ


class Frame(enum.IntEnum):
    """Kinds of frames. W: sent by the worker, C: by the child."""

    START = 1  # W: a request
    CANCEL = 2  # W: stop the request
    BODY = 3  # W: a piece of the request's body
    BODY_END = 4  # W
    BODY_FAILED = 5  # W: an error, packed
    CREDIT = 6  # both: number of bytes that the reader of a body has read
    STOP = 7  # W: tear down and exit
    READY = 10  # C: the child takes requests
    NEED_BODY = 11  # C: the handler reads the body
    PART = 12  # C: a piece of a large complete response
    REPLY = 13  # C: a complete response, or its last piece; ends the request
    STREAM = 14  # C: status, headers and first chunk of a streamed response
    CHUNK = 15  # C
    END = 16  # C: the stream is complete; ends the request
    FAILED = 17  # C: an error, packed; ends the request
    CANCELLED = 18  # C: the handler was cancelled; ends the request
    PROGRESS = 19  # C: the handler reports progress
    OUTPUT = 20  # C: the handler has created the output directory
    MEASUREMENT = 21  # C: a value for the worker's metrics; belongs to no request
    UNHEALTHY = 22  # C: the reason why the function is unhealthy; belongs to no request


def encode(kind: Frame, number: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return HEAD.pack(len(payload), kind, number) + payload


class FrameDecoder:
    """Splits a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Frame, int, bytes]]:
        """Return the frames that are complete now. Raises ChannelError for invalid data."""
        buffer = self._buffer
        buffer += data
        frames: list[tuple[Frame, int, bytes]] = []
        at = 0
        while len(buffer) - at >= HEAD.size:
            size, kind, number = HEAD.unpack_from(buffer, at)
            if size > MAX_PAYLOAD:
                raise ChannelError(f"a frame of {size} bytes")
            end = at + HEAD.size + size
            if len(buffer) < end:
                break
            try:
                frames.append((Frame(kind), number, bytes(buffer[at + HEAD.size : end])))
            except ValueError as error:
                raise ChannelError(str(error)) from error
            at = end
        del buffer[:at]
        return frames


OnFrame = Callable[[Frame, int, bytes], None]


class Channel(asyncio.Protocol):
    """One end of the channel. `on_frame` gets each frame; `closed` is done when the other end is gone."""

    def __init__(self, on_frame: OnFrame) -> None:
        self._on_frame = on_frame
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def over(cls, end: socket.socket, on_frame: OnFrame) -> Channel:
        """Make a channel of a connected socket."""
        end.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(on_frame), sock=end)
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
        except ChannelError:
            # Nothing after an invalid frame can be decoded; the owner sees that the channel is closed.
            self.abort()
            return
        for kind, number, payload in frames:
            self._on_frame(kind, number, payload)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, kind: Frame, number: int = 0, payload: bytes = b"") -> None:
        """Send a frame. It is lost if the other end is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(kind, number, payload))

    async def drain(self) -> None:
        """Wait while the other end is behind with reading."""
        await self._writable.wait()

    def close(self) -> None:
        """Close the channel after everything has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the channel now."""
        if self._transport is not None:
            self._transport.abort()


class BodySender:
    """Sends a body in frames of one kind, at most WINDOW bytes ahead of its reader."""

    def __init__(self, kind: Frame, number: int) -> None:
        self._kind = kind
        self._number = number
        self._credit = WINDOW
        self._credited = asyncio.Event()

    def add_credit(self, payload: bytes) -> None:
        """Take the payload of a CREDIT frame: the number of bytes that the reader has read."""
        self._credit += int.from_bytes(payload)
        self._credited.set()

    async def send(self, channel: Channel, chunk: bytes) -> None:
        """Send a chunk in pieces, and wait while the reader is behind."""
        for at in range(0, len(chunk), PIECE):
            while self._credit <= 0:
                self._credited.clear()
                await self._credited.wait()
            piece = chunk[at : at + PIECE]
            self._credit -= len(piece)
            channel.send(self._kind, self._number, piece)
            await channel.drain()
