"""Tasks: rates and memory with 10,000 queued ones, and how busy 8 simulated GPUs are with short ones.

The tasks are processes that sleep, so that two cores suffice; agent, gateway, broker and autoscaler are real.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from nvcf_autoscaler.placement.usage import OVER
from tests.support.platform.compute_plane import Plane, running_plane
from tests.support.platform.gateways import Version

QUEUED = 10_000
AT_ONCE = 100
SHORT = 500
GPUS = 8
SECONDS = 1.0
FLAGS = ("--log-level", "INFO")


async def run() -> None:
    """Measure a long queue, then short tasks beside a function that scales."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_plane(Path(folder), flags=FLAGS) as plane:
            await _long_queue(plane, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        async with running_plane(Path(folder), flags=FLAGS) as plane:
            given, ran = await utilisation(plane, Path(folder), SHORT)
            print(f"{SHORT} tasks of {SECONDS:g} s on {GPUS} GPUs beside a function:")
            print(f"  {given:.3f} of the GPUs' time is given to instances, in {ran:.3f} they run")


def sleeping(folder: Path, seconds: float) -> dict[str, str]:
    """Return the source of a task that sleeps and ends with 0."""
    program = folder / "sleeper"
    program.write_text(f"#!/bin/sh\nexec sleep {seconds:g}\n")
    program.chmod(0o755)
    file = folder / "task.py"
    file.touch()
    return {"python": str(program), "file": str(file), "workingDirectory": str(folder)}


async def submit(plane: Plane, count: int, **fields: Any) -> list[str]:
    """Submit tasks by bulk calls and return their ids."""
    found: list[str] = []
    while len(found) < count:
        several = min(AT_ONCE, count - len(found))
        wanted = [{"name": f"task-{len(found) + number}", **fields} for number in range(several)]
        answer = await plane.platform.call("POST", "/v1/nvct/tasks/bulk", {"tasks": wanted})
        found += [each["id"] for each in answer["tasks"]]
    return found


async def all_tasks(plane: Plane) -> list[dict[str, Any]]:
    """Return all tasks of the account, page by page."""
    found: list[dict[str, Any]] = []
    query = "limit=1000"
    while True:
        answer = await plane.platform.call("GET", f"/v1/nvct/tasks?{query}")
        found += answer["tasks"]
        if "cursor" not in answer:
            return found
        query = f"limit=1000&cursor={answer['cursor']}"


async def _long_queue(plane: Plane, folder: Path) -> None:
    processes = {"gateway": plane.platform.gateway.child.pid, "autoscaler": plane.autoscalers[0].pid}
    before = {name: _memory(pid) for name, pid in processes.items()}
    begun = time.monotonic()
    await submit(plane, QUEUED, process=sleeping(folder, 0))
    took = time.monotonic() - begun
    print(f"submit: {QUEUED / took:.0f} tasks/s")
    begun = time.monotonic()
    assert len(await all_tasks(plane)) == QUEUED
    print(f"list: {QUEUED / (time.monotonic() - begun):.0f} tasks/s in pages of 1000")
    begun = time.monotonic()
    await plane.platform.call("GET", "/v1/nvct/tasks?status=RUNNING")
    print(f"list of none among them: {(time.monotonic() - begun) * 1000:.0f} ms")
    for name, pid in processes.items():
        print(f"{name}: {_memory(pid) - before[name]:.1f} MiB more, {_memory(pid):.1f} MiB in all")
    seconds = sum(psutil.Process(processes["autoscaler"]).cpu_times()[:2])
    await asyncio.sleep(10)
    used = sum(psutil.Process(processes["autoscaler"]).cpu_times()[:2]) - seconds
    print(f"autoscaler with all of them queued and no room: {used * 10:.0f} % of a core")
    await plane.start_agent("local", "--cpu-slots", "64", "--instance-uid-range", "none")
    begun = time.monotonic()
    for _ in range(3):
        await asyncio.sleep(10)
        counts = [each["status"] for each in await all_tasks(plane)]
        done = counts.count("COMPLETED")
        print(f"64 places: {done / (time.monotonic() - begun):.1f} tasks/s begun and ended")


async def utilisation(plane: Plane, folder: Path, count: int) -> tuple[float, float]:
    """Return the share of the GPUs' time that was given to tasks and functions, and that in which they ran.

    A GPU is given from the order of an instance to its end. A task runs for SECONDS of that: the rest is the
    start of its process.
    """
    await plane.start_agent("local", "--gpu", f"H100={GPUS}", "--instance-uid-range", "none")
    function = {"gpu": "H100", "instanceType": "process", "minInstances": 0, "maxInstances": 2}
    version = await plane.deploy(function, scaling={"scaleToZeroDelay": 2.0})
    specification = {"gpu": "H100", "gpusPerInstance": 1}
    calling = asyncio.create_task(_call(plane, version))
    try:
        what = sleeping(folder, SECONDS)
        ids = set(await submit(plane, count, process=what, gpuSpecification=specification))
        while any(each["status"] in ("QUEUED", "LAUNCHED", "RUNNING") for each in await all_tasks(plane)):
            await asyncio.sleep(0.5)
    finally:
        calling.cancel()
    done = [each for each in await all_tasks(plane) if each["id"] in ids]
    assert Counter(each["status"] for each in done) == {"COMPLETED": count}
    assert all(each["launches"] == 1 for each in done)
    times = [(_seconds(each["launchedAt"]), _seconds(each["endedAt"])) for each in done]
    began, ended = min(times)[0], max(end for _, end in times)
    of_functions = sum(
        max(0.0, min(ended, each.updated_at if each.state in OVER else ended) - max(began, each.created_at))
        for each in plane.of(version)
    )
    whole = GPUS * (ended - began)
    given = sum(end - begin for begin, end in times) + of_functions
    return given / whole, (count * SECONDS + of_functions) / whole


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def _call(plane: Plane, version: Version) -> None:
    number = 0
    while True:
        number += 1
        await plane.ask(version, number)
        await asyncio.sleep(8.0)


def _memory(pid: int | None) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20
