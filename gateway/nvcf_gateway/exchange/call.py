"""One authorised call, and how it is read from a caller's HTTP request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from nvcf_gateway.access.authorization import Caller
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.exchange.bodies import CallerBody
from nvcf_gateway.http.durations import poll_seconds
from nvcf_gateway.queue.message import AssetReference, Header, header_texts
from nvcf_proto import headers as names
from nvcf_proto.h1 import RequestHead
from nvcf_proto.models import FunctionVersion

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Call:
    """One call, ready to be queued.

    `started` is Unix time in seconds. `keep_queued`: the request stays queued after the poll time.
    """

    caller: Caller
    version: FunctionVersion
    head: RequestHead
    body: CallerBody
    poll_seconds: int
    request_id: str
    started: float
    full_by_attach: bool = False
    large_response_url: str = ""
    assets: tuple[AssetReference, ...] = ()
    keep_queued: bool = False
    keyed: bool = False
    """Whether it has an idempotency key: it goes on if its caller leaves, since its response may be fetched
    later."""
    settle: Callable[[], Awaitable[None]] | None = None
    """Awaited before it is kept or its response is stored. Raises BrokerError."""


def raw_headers(request: web.BaseRequest) -> list[Header]:
    """Return the caller's headers in order, with their names as sent."""
    return header_texts(request.raw_headers)


def caller_poll_seconds(request: web.BaseRequest, *, path_route: bool) -> int:
    """Return the caller's poll time. Raises HttpProblem 400."""
    return poll_seconds(
        request.headers.get(names.NVCF_POLL_SECONDS),
        accept=request.headers.get("Accept"),
        path_route=path_route,
    )


def flag(request: web.BaseRequest, name: str, default: bool) -> bool:
    """Read a true/false header. Raises HttpProblem 400 for anything else."""
    value = request.headers.get(name)
    if value is None:
        return default
    if value.strip().lower() not in ("true", "false"):
        raise HttpProblem(400, f"header {name} is true or false")
    return value.strip().lower() == "true"


async def expect_continue(request: web.BaseRequest) -> None:
    """Send `100 Continue` to a caller that waits for it before it sends its body."""
    expected = request.headers.get("Expect")
    if expected is not None and expected.lower() == "100-continue" and not request.content.at_eof():
        await request.writer.write(_CONTINUE)
        # The writer counts the size of the response, and this is no part of it.
        request.writer.output_size = 0
