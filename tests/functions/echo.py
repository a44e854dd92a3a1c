"""Echo handlers for benchmarks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nvcf_worker import Request, Response


async def echo(request: Request) -> Response:
    """Return the body."""
    return Response(await request.read(), media_type="application/json")


async def echo_json(request: Request) -> Any:
    """Return the body, decoded and encoded again, as other servers do."""
    return await request.json()


async def stream_back(request: Request) -> AsyncIterator[bytes]:
    """Stream the body back while it arrives."""
    async for chunk in request.stream():
        yield chunk
