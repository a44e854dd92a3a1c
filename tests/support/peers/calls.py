"""Calls of the peer gateway (written from protocol.md alone), and their responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from typing import Any

from tests.support.waiting import WAIT


class BrokenResponse(Exception):
    """The worker did not complete the response body."""


@dataclass
class Answer:
    """A complete response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


@dataclass
class Call:
    """One invocation as its caller sees it."""

    request_id: str
    response_token: str
    request_token: str | None
    rest: AsyncIterable[bytes] | None
    head: asyncio.Future[tuple[int, dict[str, str]]]
    chunks: asyncio.Queue[bytes | BrokenResponse | None] = field(
        default_factory=lambda: asyncio.Queue(maxsize=1)
    )
    via: list[str] = field(default_factory=list)
    accept: list[str] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)
    posts: int = 0

    async def answer(self) -> Answer:
        """Return the complete response. Raises BrokenResponse."""
        async with asyncio.timeout(WAIT):
            status, headers = await self.head
            body = b"".join([chunk async for chunk in self.iterate()])
        return Answer(status, headers, body)

    async def iterate(self) -> Any:
        """Yield the body in chunks."""
        while True:
            chunk = await self.chunks.get()
            if chunk is None:
                return
            if isinstance(chunk, BrokenResponse):
                raise chunk
            yield chunk
