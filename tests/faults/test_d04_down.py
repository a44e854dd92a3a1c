"""D4: `nvcf down` waits for nothing that cannot happen any more, and loses no request."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from tests.support.platform.nvcf_up import local_up
from tests.support.waiting import eventually

FUNCTION = "def handler(request): return 'ok'\n"


async def test_d04_callers_without_an_instance_are_answered_at_once(tmp_path: Path) -> None:
    """A plain call gets 503, kept and keyed ones get 202, and those are answered after the next start."""
    async with local_up(tmp_path) as up:
        function = await up.deploy("f", FUNCTION, "--gpu", "NONE", "--no-wait")
        path = f"/v2/nvcf/pexec/functions/{function}"
        async with up.session() as session:

            async def call(**headers: str) -> aiohttp.ClientResponse:
                async with session.post(path, data=b"x", headers=headers) as response:
                    await response.read()
                    return response

            calls = [
                asyncio.create_task(call(**{"NVCF-KEEP-QUEUED": "false"})),
                asyncio.create_task(call(**{"NVCF-KEEP-QUEUED": "true"})),
                asyncio.create_task(call(**{"Idempotency-Key": "a", "NVCF-KEEP-QUEUED": "false"})),
            ]
            await eventually(lambda: _queued(session), "three calls are queued")
            await up.ok("down")
            plain, kept, keyed = await asyncio.gather(*calls)
        assert (plain.status, kept.status, keyed.status) == (503, 202, 202)
        assert plain.headers["Retry-After"]


async def _queued(session: aiohttp.ClientSession) -> bool:
    async with session.get("/v2/nvcf/figures") as response:
        text = await response.text()
        return '"waiting": 3' in text or '"waiting":3' in text
