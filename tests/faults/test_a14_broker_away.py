"""A14: while the broker is away, readiness says so; calls get 503, never 500, and all goes on later."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.waiting import eventually


async def _readiness(platform: Platform) -> tuple[int, dict[str, Any]]:
    async with platform.session.get(f"{platform.gateway.url}/health/ready") as response:
        return response.status, await response.json()


async def _call(platform: Platform, version: Version) -> tuple[int, str]:
    """Send a kept call that nobody serves."""
    url = platform.gateway.url + version.pexec
    headers = {**platform.authorization(), "NVCF-POLL-SECONDS": "1"}
    async with platform.session.post(url, data=b"x", headers=headers) as response:
        return response.status, response.headers.get("Retry-After", "")


async def test_a14_a_broker_that_does_not_answer(tmp_path: Path) -> None:
    """Its connections stay open, as in a partition: only a question that is not answered shows it."""
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version()
        assert (await _call(platform, version))[0] == 202
        process = platform.broker._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            waiting = asyncio.create_task(_call(platform, version))

            async def says_so() -> bool:
                status, document = await _readiness(platform)
                return status == 503 and "broker" in [each["part"] for each in document["troubles"]]

            await eventually(says_so, "readiness names the broker")

            async def refused() -> bool:
                status, retry_after = await _call(platform, version)
                assert status == 503
                return bool(retry_after)

            await eventually(refused, "calls are refused")
            assert (await waiting)[0] == 503
        finally:
            process.send_signal(signal.SIGCONT)

        async def serves() -> bool:
            return (await _readiness(platform))[0] == 200 and (await _call(platform, version))[0] == 202

        await eventually(serves, "calls are served again")
