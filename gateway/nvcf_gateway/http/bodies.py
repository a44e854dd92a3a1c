"""Reading the whole body of a request, as bytes or as a record."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from aiohttp import web

from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.http.body_budget import BodyBudget, Grow
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.record import Record, decode_object

BODY_TIMEOUT = 120.0
IDLE_TIMEOUT = 15.0
"""Longest pause of a body that is buffered."""
MAX_RECORD = 128 * 1024
RECORD_TIMEOUT = 30.0

R = TypeVar("R", bound=Record)
_RECORDS = BodyBudget()


async def read_all(
    request: web.BaseRequest, limit: int, timeout: float = BODY_TIMEOUT, grow: Grow = lambda size: None
) -> bytes:
    """Read the whole body; `grow` hears of its size. Raises HttpProblem 413 beyond `limit` bytes.

    Raises HttpProblem 408 after `timeout` seconds, or `IDLE_TIMEOUT` seconds without a byte.
    """
    problem = HttpProblem(413, f"the body is at most {limit} bytes here; pexec takes larger ones")
    if request.content_length is not None and request.content_length > limit:
        raise problem
    parts, size = [], 0
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    try:
        async with asyncio.timeout(min(timeout, IDLE_TIMEOUT)) as patience:
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise problem
                grow(size)
                parts.append(chunk)
                patience.reschedule(min(deadline, loop.time() + IDLE_TIMEOUT))
    except TimeoutError:
        pause = f", or paused for {IDLE_TIMEOUT:g} s"
        raise HttpProblem(408, f"the body did not arrive within {timeout:g} s{pause}") from None
    return b"".join(parts)


async def read_record(request: web.BaseRequest, kind: type[R], limit: int = MAX_RECORD) -> R:
    """Read a JSON body of at most `limit` bytes as a record. Raises HttpProblem 400, 408 and 413."""
    body = await read_all(request, limit, RECORD_TIMEOUT)
    try:
        return await _RECORDS.parsed(body, lambda body: kind.from_dict(decode_object(body)))
    except InvalidRecord as error:
        raise invalid_field(error) from None
