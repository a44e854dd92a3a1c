"""Large tensors by shared memory: equal results, no leaks, nothing overwritten, and what a crash leaves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from nvcf_worker.triton import Triton
from nvcf_worker.triton import shared_memory as large
from nvcf_worker.triton.segments import DIRECTORY, PREFIX
from nvcf_worker.triton.shared_memory import SharedMemory
from nvcf_worker.triton.tensors import Array
from nvcf_worker.triton.transport import Call
from tests.support.platform.processes import end, start
from tests.support.waiting import eventually
from tests.triton.server import TritonServer, running_server

ITEMS = 262_144

CRASHING = """
import asyncio, os, signal, sys
import numpy as np
from nvcf_worker.triton import Triton

async def main():
    model = Triton(sys.argv[1]).model("wide")
    await model({"X": np.ones(262144, np.float32)})
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def wide_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TritonServer]:
    """A server with the model `wide`."""
    async with running_server(tmp_path_factory.mktemp("triton") / "log", models=("wide",)) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
async def triton(request: pytest.FixtureRequest, wide_server: TritonServer) -> AsyncIterator[Triton]:
    """Return a connection by each protocol."""
    address = wide_server.grpc if request.param == "grpc" else wide_server.http
    async with Triton(f"{request.param}://{address}") as triton:
        yield triton


def numbers(seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).random(ITEMS, np.float32)


def memory(triton: Triton) -> SharedMemory:
    found = triton._connected().memory
    assert found is not None
    return found


def own_segments() -> list[str]:
    import os

    return [path.name for path in DIRECTORY.glob(f"{PREFIX}{os.getpid()}-*")]


async def test_results_are_equal_and_nothing_is_left(triton: Triton) -> None:
    model = triton.model("wide")

    for first in range(3):
        given = [numbers(seed) for seed in range(first, first + 6)]
        found = await asyncio.gather(*(model({"X": each}) for each in given))
        for value, outputs in zip(given, found, strict=True):
            assert np.array_equal(outputs["Y"][0], value)
            assert outputs["SUM"].shape == (1, 1)

    registered = await triton._connected().transport.regions()
    # Segments are used again: no more than there were requests at once.
    assert 1 <= len(own_segments()) == len(registered) <= 6
    await triton.close()
    assert own_segments() == []
    assert await triton._connected().transport.regions() == {}


async def test_a_caller_that_leaves_does_not_free_memory_that_triton_still_writes(
    triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, transport = triton.model("wide"), triton._connected().transport
    await model({"X": numbers(0)})
    sent: list[Call] = []
    infer = transport.infer

    async def noted(call: Call) -> dict[str, Array]:
        sent.append(call)
        return await infer(call)

    monkeypatch.setattr(transport, "infer", noted)
    leaving = [asyncio.create_task(model({"X": numbers(1), "SECONDS": [1.0]})) for _ in range(2)]
    await eventually(lambda: len(sent) == 2, "both are under way")
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    assert len(memory(triton)._taken) == 2

    found = await asyncio.gather(*(model({"X": numbers(seed)}) for seed in range(2, 6)))

    for seed, outputs in zip(range(2, 6), found, strict=True):
        assert np.array_equal(outputs["Y"][0], numbers(seed))
    await eventually(lambda: not memory(triton)._taken, "the memory is free again")


async def test_at_the_limit_tensors_are_sent_without_shared_memory(
    triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory(triton), "_limit", 4 * 1024 * 1024)
    model = triton.model("wide")

    found = await asyncio.gather(*(model({"X": numbers(seed)}) for seed in range(4)))

    for seed, outputs in enumerate(found):
        assert np.array_equal(outputs["Y"][0], numbers(seed))
    assert memory(triton)._bytes <= 4 * 1024 * 1024


async def test_a_server_that_has_lost_the_regions_gets_new_ones(triton: Triton) -> None:
    model, transport = triton.model("wide"), triton._connected().transport
    await model({"X": numbers(0)})
    for name in await transport.regions():
        await transport.unregister(name)

    for seed in (1, 2):
        assert np.array_equal((await model({"X": numbers(seed)}))["Y"][0], numbers(seed))

    assert len(await transport.regions()) == 1


async def test_what_a_killed_worker_leaves_is_removed_by_the_next(
    triton: Triton, wide_server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "UNREGISTER_AFTER", 0.0)
    program = tmp_path / "crashing.py"
    program.write_text(CRASHING)
    crashed = await start(
        [sys.executable, str(program), f"grpc://{wide_server.grpc}"], log=tmp_path / "crashing.log"
    )
    try:
        await eventually(lambda: not crashed.running, "it has crashed", story=crashed.text)
    finally:
        await end(crashed)
    left = [path.name for path in DIRECTORY.glob(f"{PREFIX}{crashed.pid}-*")]
    assert len(left) == 1

    await triton.model("wide")({"X": numbers(0)})

    assert not (DIRECTORY / left[0]).exists()

    async def forgotten() -> bool:
        return left[0] not in await triton._connected().transport.regions()

    await eventually(forgotten, "Triton has forgotten the region")


async def test_triton_forgets_a_region_once_its_request_is_over(
    triton: Triton, wide_server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A region that a request uses stays, and counts, until the request is over."""
    monkeypatch.setattr(large, "UNREGISTER_AFTER", 0.0)
    shared, transport = memory(triton), triton._connected().transport
    begun = wide_server.child.text().count("wide: sleeps")
    running = asyncio.create_task(triton.model("wide")({"X": numbers(1), "SECONDS": [3.0]}))
    await eventually(lambda: wide_server.child.text().count("wide: sleeps") > begun, "it runs")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    [left] = shared._left
    [segment] = shared._taken
    left.cancel()
    await eventually(lambda: not shared._taken, "nobody waits for it")

    await shared.tick()

    assert segment.name in await transport.regions()
    assert shared._bytes == segment.size

    async def forgotten() -> bool:
        return segment.name not in await transport.regions()

    await eventually(forgotten, "Triton has forgotten the region")
    await eventually(lambda: shared._bytes == 0, "it does not count any more")
