"""A15: after an orderly restart of the broker no call waits for the ack wait, here ten minutes."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path

import aiohttp
import pytest

from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.waiting import eventually

EXECUTIONS = Path(__file__).parents[1] / "functions" / "executions.py"
RESTARTS = 2
CALLERS = 24


async def keep_calling(
    platform: Platform, version: Version, number: int, stop: asyncio.Event, seen: Counter[str]
) -> None:
    made = 0
    while not stop.is_set():
        made += 1
        key = f"{number}-{made}"
        headers = {**platform.authorization(), "NVCF-POLL-SECONDS": "50", "Idempotency-Key": key}
        body = json.dumps({"id": key, "seconds": 0.02})
        while True:
            try:
                async with platform.session.post(
                    platform.gateway.url + version.pexec, data=body, headers=headers
                ) as response:
                    await response.read()
            except aiohttp.ClientError:
                continue
            if response.status != 503:
                break
            await asyncio.sleep(0.1)
        seen[str(response.status)] += 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize("flags", [(), ("--wide-inbox",)])
async def test_no_call_waits_for_its_ack_wait(tmp_path: Path, flags: tuple[str, ...]) -> None:
    async with running_platform(tmp_path, flags=("--ack-wait", "600", *flags)) as platform:
        version = await platform.deployed_version()
        notes = tmp_path / "notes"
        notes.touch()
        environment = {"NOTES": str(notes), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        for _ in range(2):
            await platform.start_worker(version, EXECUTIONS, "once", concurrency=16, environment=environment)
        stop, seen = asyncio.Event(), Counter[str]()
        async with asyncio.TaskGroup() as callers:
            for number in range(CALLERS):
                callers.create_task(keep_calling(platform, version, number, stop, seen))
            for _ in range(RESTARTS):
                before = seen.total()
                await eventually(lambda: seen.total() > before + 60, "calls are answered")  # noqa: B023
                await platform.broker.stop()
                await platform.broker.start()
            before = seen.total()
            await eventually(lambda: seen.total() > before + 60, "calls are answered again")
            stop.set()
        assert set(seen) == {"200"}, seen
