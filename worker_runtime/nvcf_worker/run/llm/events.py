"""A stream of server-sent events from an engine, with an error event where it breaks off."""

from __future__ import annotations

import json
from collections.abc import Callable

import aiohttp

from nvcf_proto.headers import EVENT_STREAM
from nvcf_proto.server_sent_events import WholeEvents
from nvcf_worker.function.response import Outcome, Source
from nvcf_worker.run.llm.access import error_body
from nvcf_worker.run.llm.telemetry import Measured

LOST = "The engine ended before the response was complete."
LOST_CODE = "engine_lost"
BROKEN = (aiohttp.ClientError, OSError)
"""How a read of a connection fails that broke or took too long."""


def is_event_stream(reply: Outcome) -> bool:
    """Whether a response is a stream of server-sent events."""
    return any(
        name.lower() == "content-type" and value.partition(";")[0].strip().lower() == EVENT_STREAM
        for name, value in reply.headers
    )


def error_event(path: str, events: int) -> bytes:
    """Return the event for a stream that broke off, in the form of the route. events: sent before it."""
    if path.partition("?")[0] == "/v1/responses":
        error = {"type": "error", "code": LOST_CODE, "message": LOST, "param": None}
        return b"event: error\ndata: " + json.dumps({**error, "sequence_number": events}).encode() + b"\n\n"
    return b"data: " + error_body(LOST, LOST_CODE, "server_error") + b"\n\n"


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
        whole = self._whole.feed(data)
        while not whole:
            try:
                whole = self._whole.feed(await self._source.__anext__())
            except StopAsyncIteration:
                self._ended = True
                return self._whole.rest()
        self._measured.events(whole)
        return whole

    async def __anext__(self) -> bytes:
        while not self._ended:
            try:
                whole = self._whole.feed(await self._source.__anext__())
            except StopAsyncIteration:
                self._ended = True
                whole = self._whole.rest()
            except BROKEN:
                self._ended = True
                self._on_lost()
                separator = b"\n\n" if self._whole.partial else b""
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
