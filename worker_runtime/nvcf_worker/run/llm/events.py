"""A stream of server-sent events from an engine: whole events, and an error event where it breaks off."""

from __future__ import annotations

import json
from collections.abc import Callable

import aiohttp

from nvcf_worker.function.response import Outcome, Source
from nvcf_worker.run.llm.access import error_body
from nvcf_worker.run.llm.telemetry import Measured

MEDIA_TYPE = "text/event-stream"
MOST_HELD = 1024 * 1024
"""Bytes of an incomplete event that are held back; a longer one is passed on in parts."""
LOST = "The engine ended before the response was complete."
LOST_CODE = "engine_lost"
BROKEN = (aiohttp.ClientError, OSError)
"""How a read of a connection fails that broke or took too long."""


def is_event_stream(reply: Outcome) -> bool:
    """Whether a response is a stream of server-sent events."""
    return any(
        name.lower() == "content-type" and value.partition(";")[0].strip().lower() == MEDIA_TYPE
        for name, value in reply.headers
    )


def error_event(path: str, events: int) -> bytes:
    """Return the event for a stream that broke off, in the form of the route. events: sent before it."""
    if path.partition("?")[0] == "/v1/responses":
        error = {"type": "error", "code": LOST_CODE, "message": LOST, "param": None}
        return b"event: error\ndata: " + json.dumps({**error, "sequence_number": events}).encode() + b"\n\n"
    return b"data: " + error_body(LOST, LOST_CODE, "server_error") + b"\n\n"


class WholeEvents:
    """Cuts bytes into whole events, so that what follows a broken stream begins a new one. No I/O."""

    def __init__(self) -> None:
        self._held = bytearray()
        self.inside = False
        """Whether a part of an event has been passed on."""
        self.events = 0

    def add(self, data: bytes) -> bytes:
        """Return all events that are complete with this data."""
        self._held += data
        end = max(self._held.rfind(b"\n\n") + 2, self._held.rfind(b"\n\r\n") + 3)
        if end < 3:
            if len(self._held) <= MOST_HELD:
                return b""
            end, self.inside = len(self._held), True
        else:
            self.inside = False
        whole = bytes(self._held[:end])
        del self._held[:end]
        self.events += whole.count(b"\n\n") + whole.count(b"\n\r\n")
        return whole

    def rest(self) -> bytes:
        """Return what no empty line has ended."""
        held, self._held = bytes(self._held), bytearray()
        return held


class EventStream:
    """The events of one response. Read by the worker's delivery, as fast as its caller reads.

    on_lost: called if the connection to the engine breaks.
    """

    def __init__(self, source: Source, path: str, on_lost: Callable[[], None], measured: Measured) -> None:
        self._source = source
        self._path = path
        self._on_lost = on_lost
        self._measured = measured
        self._whole = WholeEvents()
        self._ended = False

    async def first(self, data: bytes) -> bytes:
        """Return the first events, which begin with `data`; empty if there are none.

        Raises the connection's error: nothing has been sent yet, so that the request may be tried again.
        """
        whole = self._whole.add(data)
        while not whole:
            try:
                whole = self._whole.add(await self._source.__anext__())
            except StopAsyncIteration:
                self._ended = True
                return self._whole.rest()
        self._measured.events(whole)
        return whole

    async def __anext__(self) -> bytes:
        while not self._ended:
            try:
                whole = self._whole.add(await self._source.__anext__())
            except StopAsyncIteration:
                self._ended = True
                whole = self._whole.rest()
            except BROKEN:
                self._ended = True
                self._on_lost()
                separator = b"\n\n" if self._whole.inside else b""
                return separator + error_event(self._path, self._whole.events)
            if whole:
                self._measured.events(whole)
                return whole
        self._measured.ended()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection of an unfinished response, so that the engine stops generating."""
        self._measured.ended()
        await self._source.aclose()
