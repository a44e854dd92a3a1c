"""1 GiB through the platform and back: time, and peak memory of gateway and worker."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from tests.support.platform.gateways import running_platform

FUNCTIONS = Path(__file__).parent.parent / "functions"
GIB = 2**30
BLOCK = bytes(256 * 1024)


async def _upload() -> AsyncIterator[bytes]:
    for _ in range(GIB // len(BLOCK)):
        yield BLOCK


async def run() -> None:
    """Send a body that the function streams back while it arrives."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_platform(Path(folder)) as platform:
            version = await platform.deployed_version()
            worker = await platform.start_worker(version, FUNCTIONS / "echo.py", "stream_back")
            peak = {"gateway": 0.0, "worker": 0.0}

            async def watch() -> None:
                while True:
                    peak["gateway"] = max(peak["gateway"], platform.gateway.child.resident_mib())
                    peak["worker"] = max(peak["worker"], worker.resident_mib())
                    await asyncio.sleep(0.05)

            watching = asyncio.create_task(watch())
            started = time.perf_counter()
            size = 0
            url = platform.gateway.url + version.pexec
            async with platform.session.post(
                url, data=_upload(), headers=platform.authorization(), timeout=None
            ) as response:
                async for chunk in response.content.iter_any():
                    size += len(chunk)
            elapsed = time.perf_counter() - started
            watching.cancel()
            assert size == GIB, f"{size} bytes came back"
            print(
                f"1 GiB up and back in {elapsed:.1f} s, {2 * GIB / elapsed / 2**20:.0f} MiB/s both ways; "
                f"peak resident: gateway {peak['gateway']:.0f} MiB, worker {peak['worker']:.0f} MiB"
            )
