"""The simulator says what `nvcf up` does: the same requests in both, seconds for minutes, simulated GPUs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nvcf_autoscaler.simulate.engine import simulate
from nvcf_autoscaler.simulate.model import SimulatedFunction, SimulatedSpecification, StartupTimes
from nvcf_autoscaler.simulate.policies.ours import Ours
from nvcf_broker.process import spawn
from tests.support.platform.nvcf_command import Local, nvcf_commands

LENGTH = 150.0
TOLERANCE = 0.10
SEEDS = 5

SLEEPER = """
import asyncio, time
from nvcf_worker import Request

time.sleep(5)

async def handler(request: Request) -> float:
    seconds = float((await request.json())["seconds"])
    await asyncio.sleep(seconds)
    return seconds
"""


@dataclass(frozen=True)
class Seen:
    """One request: when it came, its service time, and how long it waited."""

    at: float
    duration: float
    wait: float


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Local]:
    async with nvcf_commands(tmp_path) as made:
        yield made


def bursts(seed: int) -> list[tuple[float, float]]:
    """Bursts, each followed by half a minute at an even rate and by silence."""
    rng = random.Random(seed)
    at, trace = 3.0, []
    while at < LENGTH:
        trace += [(at + rng.random(), rng.uniform(1, 3)) for _ in range(rng.randint(6, 16))]
        later = at + 8
        while later < at + 30:
            later += rng.expovariate(0.8)
            trace.append((later, rng.uniform(1, 3)))
        at += 30 + rng.uniform(20, 50)
    return sorted(each for each in trace if each[0] < LENGTH)


async def play(local: Local, trace: list[tuple[float, float]]) -> list[Seen]:
    """Send the requests at their times. Return what their callers saw."""
    state = json.loads((local.data / "state.json").read_text())
    key = (local.data / "admin.key").read_text().strip()
    async with aiohttp.ClientSession(state["url"], headers={"Authorization": f"Bearer {key}"}) as session:
        async with session.get("/v2/nvcf/functions") as response:
            (version,) = (await response.json())["functions"]
        began = time.monotonic()

        async def call(at: float, duration: float) -> Seen:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            sent = time.monotonic()
            path = f"/v2/nvcf/pexec/functions/{version['id']}"
            async with session.post(path, json={"seconds": duration}) as response:
                status, request_id = response.status, response.headers["NVCF-REQID"]
            while status == 202:
                async with session.get(f"/v2/nvcf/pexec/status/{request_id}") as response:
                    status = response.status
            assert status == 200
            return Seen(sent - began, duration, max(0.0, time.monotonic() - sent - duration))

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(call(*each)) for each in trace]
    return sorted((each.result() for each in running), key=lambda each: each.at)


async def recorded(local: Local) -> dict[str, Any] | None:
    """Return the settings and measured figures that `nvcf-simulate record` writes; None if it has none."""
    process = await spawn(
        [sys.executable, "-m", "nvcf_autoscaler.simulate", "record", str(local.folder / "trace.csv")],
        env=local.environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    await asyncio.wait_for(process.communicate(), 60)
    if process.returncode:
        return None
    (settings,) = json.loads((local.folder / "trace.csv.json").read_text())
    return dict(settings)


@pytest.mark.timeout(600)
async def test_gpu_time_and_waits_of_a_real_run_are_within_a_tenth_of_the_simulation(local: Local) -> None:
    profile = os.environ.get("AGREEMENT_PROFILE", "balanced")
    trace = bursts(int(os.environ.get("AGREEMENT_SEED", "1")))
    await local.start("--gpus", "4")
    file = local.write("sleeper.py", SLEEPER)
    flags = ("--gpu", "SIM", "--min", "0", "--max", "4", "--concurrency", "2", "--profile", profile)
    await local.ok("deploy", file, "--name", "sleeper", *flags)
    seen = await play(local, trace)
    # The instances end, and then the last part of the history is written.
    ended = time.monotonic()
    while any(each["state"] not in ("COMPLETED", "FAILED") for each in await local.instances()):
        assert time.monotonic() - ended < 120
        await asyncio.sleep(1.0)
    settled: dict[str, Any] | None = None
    while True:
        found = await recorded(local)
        if found is not None and found == settled and time.monotonic() - ended > 35:
            break
        settled = found
        await asyncio.sleep(5.0)
        assert time.monotonic() - ended < 240
    assert found is not None

    startup = found["specification"]["startup"]
    spec = SimulatedSpecification("SIM", 4, 0, 2, 1, StartupTimes(startup["median"], startup["sigma"]))
    function = SimulatedFunction(
        "sleeper",
        array("d", (each.at for each in seen)),
        array("d", (each.duration for each in seen)),
        LENGTH + 120,
        (spec,),
    )
    runs = [simulate(function, Ours(profile=profile), seed) for seed in range(SEEDS)]
    simulated = sum(run.gpu_seconds for run in runs) / SEEDS
    waited = sum(sum(run.waits) / len(run.waits) for run in runs) / SEEDS
    mean_wait = sum(each.wait for each in seen) / len(seen)
    sys.stdout.write(
        f"{len(seen)} requests, start-up {startup['median']:.2f} s; GPU-seconds live"
        f" {found['measuredGpuSeconds']:.0f}, simulated {simulated:.0f}; mean wait live {mean_wait:.2f} s,"
        f" simulated {waited:.2f} s\n"
    )
    assert found["measuredGpuSeconds"] == pytest.approx(simulated, rel=TOLERANCE)
    assert mean_wait == pytest.approx(waited, rel=TOLERANCE)
