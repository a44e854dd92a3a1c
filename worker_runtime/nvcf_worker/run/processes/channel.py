"""One end of the socket pair between worker and child, in an event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

from nvcf_worker.errors import ChannelError
from nvcf_worker.run.processes.frames import Frame, FrameDecoder, encode

OnFrame = Callable[[Frame, int, bytes], None]


class Channel(asyncio.Protocol):
    """Sends and receives frames. `on_frame` gets each one; `closed` is done when the other end is gone."""

    def __init__(self, on_frame: OnFrame) -> None:
        self._on_frame = on_frame
        self._decoder = FrameDecoder()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def over(cls, end: socket.socket, on_frame: OnFrame) -> Channel:
        """Take over a connected socket."""
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
            # Nothing that comes after it can be understood; the owner sees the end.
            self.abort()
            return
        for kind, call, payload in frames:
            self._on_frame(kind, call, payload)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, kind: Frame, call: int = 0, payload: bytes = b"") -> None:
        """Send a frame; to an end that has gone it is lost."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(kind, call, payload))

    async def drain(self) -> None:
        """Wait while the other end is behind with reading."""
        await self._writable.wait()

    def close(self) -> None:
        """Close once everything is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()
