"""Price of waiting for the disk: calls per second and flushes of the disk per call, in each mode.

The modes run in turn, each on a file system of its own behind a loop device, whose flushes are counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from nvcf_broker.server import LocalBroker
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.small_disk import SmallDisk

FUNCTIONS = Path(__file__).parent.parent / "functions"
BODY = json.dumps({"data": "x" * 1010}).encode()
CALLERS = 16
SECONDS = 2.0
ROUNDS = 3
KINDS = ("plain", "keyed", "kept")
MODES = ("interval", "promises", "always")
_FLUSHES = 15


def _flushes(folder: Path) -> int:
    """Return how often the disk below a folder was told to write its cache."""
    device = os.stat(folder).st_dev
    stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return int(stat.read_text().split()[_FLUSHES])


def _headers(kind: str, number: int) -> Mapping[str, str]:
    if kind == "keyed":
        return {"Idempotency-Key": f"{time.time_ns()}-{number}"}
    # Nobody serves these: each is told 202 after its poll time.
    return {"NVCF-POLL-SECONDS": "1"} if kind == "kept" else {}


async def _load(platform: Platform, version: Version, kind: str) -> int:
    """Return the number of calls that were answered."""
    url, calls = platform.gateway.url + version.pexec, 0
    end = time.perf_counter() + SECONDS
    expected = 202 if kind == "kept" else 200

    async def caller(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal calls
        while time.perf_counter() < end:
            headers = {**platform.authorization(), **_headers(kind, number)}
            async with session.post(url, data=BODY, headers=headers) as response:
                await response.read()
                assert response.status == expected, response.status
            calls += 1

    callers = CALLERS * (20 if kind == "kept" else 1)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        for number in range(callers):
            group.create_task(caller(session, number))
    return calls


async def _measure(mode: str, found: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    with tempfile.TemporaryDirectory() as folder, SmallDisk(Path(folder)) as disk:
        broker = LocalBroker(disk.path / "broker", sync_always=mode == "always")
        flags = ("--store-folder", str(disk.path)) if mode == "promises" else ()
        async with running_platform(Path(folder), broker=broker, flags=flags) as platform:
            version, unserved = await platform.deployed_version(), await platform.deployed_version("unserved")
            await platform.start_worker(version, FUNCTIONS / "echo.py", "echo", concurrency=CALLERS)
            await _load(platform, version, "plain")
            for kind in KINDS:
                before, began = _flushes(disk.path), time.perf_counter()
                calls = await _load(platform, unserved if kind == "kept" else version, kind)
                rate = calls / (time.perf_counter() - began)
                found.setdefault((kind, mode), []).append((rate, (_flushes(disk.path) - before) / calls))


async def run() -> None:
    """Measure all modes, several times in turn, and print the medians."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for mode in MODES:
            await _measure(mode, found)
    print(f"{'calls':>6} {'mode':>9} {'per s':>7} {'flushes per call':>17}  all rates")
    for (kind, mode), values in sorted(found.items()):
        rates = [rate for rate, _ in values]
        flushes = statistics.median(flushed for _, flushed in values)
        everything = " ".join(f"{rate:.0f}" for rate in rates)
        print(f"{kind:>6} {mode:>9} {statistics.median(rates):>7.0f} {flushes:>17.2f}  {everything}")
