"""Echoes for benchmarks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nvcf_worker import Request, Response


async def echo(request: Request) -> Response:
    """The body as it came."""
    return Response(await request.read(), media_type="application/json")


async def echo_json(request: Request) -> Any:
    """The body, decoded and encoded again, as other servers do it."""
    return await request.json()


async def stream_back(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes."""
    async for chunk in request.stream():
        yield chunk
