"""A caller of pexec, and a call whose request a peer worker has pulled."""

from __future__ import annotations

import asyncio

import aiohttp

from tests.support.peers.worker import PeerWorker, Work
from tests.support.platform.gateways import Platform


class Answer:
    """A caller's complete response."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = body


async def call(
    platform: Platform, path: str, data: object = b"hello", *, method: str = "POST", **headers: str
) -> Answer:
    """Make a call as an ordinary HTTP client does."""
    sent = {**platform.authorization(), **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with platform.session.request(
        method, platform.gateway.url + path, data=data, headers=sent
    ) as response:
        return Answer(response, await response.read())


async def pulled(
    platform: Platform, worker: PeerWorker, path: str, **options: object
) -> tuple[asyncio.Task[Answer], Work]:
    """Start a call and pull its request."""
    task = asyncio.create_task(call(platform, path, **options))  # type: ignore[arg-type]
    return task, await worker.pull()
