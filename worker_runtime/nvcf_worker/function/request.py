"""The request as handlers see it: `Request` for coroutines, `SyncRequest` for plain functions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

from nvcf_otel.propagation import PROPAGATORS, W3C_ONLY
from nvcf_worker.function.body import RequestBody
from nvcf_worker.function.cancellation import Cancellation
from nvcf_worker.function.content import decoded, parse_json
from nvcf_worker.function.headers import Headers, MultiMap, NamedFiles, function_headers
from nvcf_worker.message import Work, poll_seconds, request_time
from nvcf_worker.process import logs

FUNCTION_LOG = logging.getLogger("function")
TRACE_HEADERS = ("traceparent", "tracestate", "baggage")


@dataclass(frozen=True, slots=True)
class Asset:
    """An input asset of a request, on disk."""

    id: str
    path: Path
    content_type: str

    def __fspath__(self) -> str:
        return str(self.path)


class RequestContext(Protocol):
    """What a request offers besides its own content; whoever runs the handler supplies it."""

    @property
    def assets(self) -> Mapping[str, Asset]:
        """Return the downloaded assets by id."""

    @property
    def output_dir(self) -> Path:
        """Return the output directory; it exists from the first use on."""

    def named_files(self) -> NamedFiles | None:
        """Return what the headers say about files (protocol.md, section 5.4)."""

    def progress(self, percent: float, partial: Any) -> None:
        """Report progress, from any thread."""


class Caller(NamedTuple):
    """Who invoked the function: the subject of the caller's credentials and its account."""

    subject: str
    nca_id: str


@dataclass(frozen=True, slots=True)
class FunctionContext:
    """What all requests of a worker have in common: ids and constant headers."""

    function_id: str
    version_id: str
    headers: list[tuple[str, str]]


@dataclass(slots=True, eq=False, repr=False)
class RequestInfo:
    """What both kinds of request share. Derived values are computed on first use.

    target: path and query as they were sent.
    """

    _work: Work
    _function: FunctionContext
    _body: RequestBody
    cancelled: Cancellation
    method: str
    target: str
    path_params: Mapping[str, str]
    _sent: list[tuple[str, str]] | None
    _context: RequestContext | None
    _headers: Headers | None = field(default=None, init=False)
    _deadline: float = field(default=0.0, init=False)
    # When the time limit is over, in the time of the event loop; 0 without a limit.
    _expires: float = field(default=0.0, init=False)
    # The loop that fetches bodies; set before a handler runs on a thread.
    _loop: asyncio.AbstractEventLoop = field(init=False)

    @property
    def id(self) -> str:
        """The request's id, a UUID."""
        return self._work.request_id

    @property
    def attempt(self) -> int:
        """1 for the first delivery of this request, 2 when an earlier worker failed to respond, and so on."""
        return self._work.attempt

    @property
    def path(self) -> str:
        """The path as it was sent, percent-encoding included, without the query."""
        return self.target.partition("?")[0] or "/"

    @property
    def query(self) -> MultiMap:
        """Decoded query parameters."""
        return MultiMap(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    @property
    def headers(self) -> Headers:
        """The caller's headers and those that the platform adds (protocol.md, section 5.4)."""
        if self._headers is None:
            message = self._work.message
            self._headers = Headers(
                function_headers(
                    self._with_trace(self._sent_headers()),
                    self._function.headers,
                    request_id=self._work.request_id,
                    subject=message.subject,
                    nca_id=message.ncaId,
                    max_response_bytes=message.maxDirectResponseSizeBytes,
                    seconds_left=self.time_left,
                    files=None if self._context is None else self._context.named_files(),
                )
            )
        return self._headers

    def _with_trace(self, sent: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the caller's headers with the current trace context in place of the caller's own."""
        trace = self.trace_context
        if not W3C_ONLY:
            own = {name: value for name, value in trace.items() if name in PROPAGATORS.headers}
            return [pair for pair in sent if pair[0].lower() not in own] + list(own.items())
        if "traceparent" not in trace:
            return sent
        kept = [pair for pair in sent if pair[0].lower() not in ("traceparent", "tracestate")]
        return kept + [(name, trace[name]) for name in ("traceparent", "tracestate") if name in trace]

    @property
    def _whole_body(self) -> bytes | None:
        """Return the body if all of it is here already; None when the rest would have to be fetched."""
        return self._body.whole

    @property
    def caller(self) -> Caller:
        """Who invoked the function."""
        return Caller(self._work.message.subject, self._work.message.ncaId)

    @property
    def function_id(self) -> str:
        """Id of the function that was invoked."""
        return self._function.function_id

    @property
    def function_version_id(self) -> str:
        """Id of the version that was invoked."""
        return self._function.version_id

    @property
    def deadline(self) -> datetime:
        """When the caller stops waiting (UTC): the time of the request plus its poll time."""
        return datetime.fromtimestamp(self._deadline_seconds(), UTC)

    @property
    def time_left(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self._deadline_seconds() - time.time()

    @property
    def idempotency_key(self) -> str | None:
        """The caller's `Idempotency-Key`: the same for each repetition of one logical call."""
        return next(
            (value for name, value in self._sent_headers() if name.lower() == "idempotency-key"), None
        )

    @property
    def trace_context(self) -> Mapping[str, str]:
        """Trace context for calls to other services: `traceparent`, `tracestate`, `baggage`.

        With `OTEL_PROPAGATORS`, the headers of the formats that it names.
        """
        trace = self._work.trace or logs.current_trace()
        if not W3C_ONLY:
            return PROPAGATORS.inject(trace)
        return {name: trace[name] for name in TRACE_HEADERS if name in trace}

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose lines carry this request's id, from any thread."""
        return logging.LoggerAdapter(FUNCTION_LOG, {"request_id": self._work.request_id})

    @property
    def assets(self) -> Mapping[str, Asset]:
        """The input assets by id, downloaded: `open(request.assets[id])`, `.path`, `.content_type`."""
        return {} if self._context is None else self._context.assets

    @property
    def output_dir(self) -> Path:
        """A directory for result files: they are zipped and uploaded, and the caller gets 302 to them.

        It is removed afterwards. Only exec and pexec calls can carry files.
        """
        if self._context is None:
            raise RuntimeError("this request has no output directory")
        return self._context.output_dir

    def progress(self, percent: float, partial: Any = None) -> None:
        """Report progress from 0 to 100 to the caller, with a partial result (JSON) if there is one.

        The caller, or a poll, gets 202 with it and may poll again. No effect on pass-through calls and event
        streams. May be called from any thread.
        """
        if self._context is not None:
            self._context.progress(percent, partial)

    def _deadline_seconds(self) -> float:
        if not self._deadline:
            wait = poll_seconds((name.lower(), value) for name, value in self._sent_headers())
            self._deadline = request_time(self._work) + wait
        return self._deadline

    def _sent_headers(self) -> list[tuple[str, str]]:
        if self._sent is None:
            self._sent = [(pair.key, pair.value) for pair in self._work.message.requestHeaders]
        return self._sent

    def _decoded(self, body: bytes) -> bytes:
        """Return the body without the Content-Encoding that the caller gave it."""
        applied = [value for name, value in self._sent_headers() if name.lower() == "content-encoding"]
        return decoded(body, ",".join(applied)) if applied else body

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.method} {self.target}>"


class Request(RequestInfo):
    """The request of a coroutine function or an async generator."""

    __slots__ = ()

    async def read(self) -> bytes:
        """The whole body. Raises BodyUnavailable when the gateway cannot supply the rest of it."""
        whole = self._body.whole
        return whole if whole is not None else await self._body.read()

    async def json(self) -> Any:
        """The body as JSON, gzip and deflate undone. Raises BadInput (a 400 response) when it is no JSON."""
        return parse_json(self._decoded(await self.read()))

    def stream(self) -> AsyncIterator[bytes]:
        """The body in chunks as they arrive; can be iterated once."""
        return self._body.stream()


class SyncRequest(RequestInfo):
    """The request of a plain function or a generator, which run on a thread: reads block."""

    __slots__ = ()

    def read(self) -> bytes:
        """The whole body. Raises BodyUnavailable, or RequestCancelled when the caller leaves meanwhile."""
        self._check_thread("await request.read()")
        whole = self._body.whole
        if whole is not None:
            return whole
        return asyncio.run_coroutine_threadsafe(self._body.read(), self._loop).result()

    def json(self) -> Any:
        """The body as JSON, gzip and deflate undone. Raises BadInput (a 400 response) when it is no JSON."""
        self._check_thread("await request.json()")
        return parse_json(self._decoded(self.read()))

    def stream(self) -> Iterator[bytes]:
        """The body in chunks as they arrive; can be iterated once."""
        self._check_thread("async for chunk in request.stream()")
        return self._chunks()

    def _chunks(self) -> Iterator[bytes]:
        whole = self._body.whole
        if whole is not None:
            if whole:
                yield whole
            return
        chunks = self._body.stream()
        while True:
            self._check_thread("async for chunk in request.stream()")
            chunk = asyncio.run_coroutine_threadsafe(_next(chunks), self._loop).result()
            if chunk is None:
                return
            yield chunk

    def _check_thread(self, instead: str) -> None:
        """Raise RuntimeError on the event loop's thread, where a read would wait for itself for ever.

        Bodies that are here already are refused, too: otherwise only large ones would fail.
        """
        if asyncio._get_running_loop() is self._loop:
            raise RuntimeError(
                "this request's reads block, and a blocking read would stop the event loop; "
                f"in async code write `{instead}` (`async def` handlers get a request with these methods)"
            )


def for_loop(request: Any) -> None:
    """Make a request's reads awaitable: the plain function that got it has returned something to await."""
    if isinstance(request, SyncRequest):
        request.__class__ = Request  # type: ignore[assignment] # they have the same members


def for_thread(request: Any, loop: asyncio.AbstractEventLoop) -> None:
    """Make a request's reads blocking: the coroutine that got it has returned a plain iterator."""
    if isinstance(request, Request):
        request._loop = loop
        request.__class__ = SyncRequest  # type: ignore[assignment]


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)
