"""The examples of batching and isolation on a real platform with many callers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from examples.batch.function import Network, spirals
from examples.isolation.function import primes_below

from tests.support.platform.gateways import Platform, Version, running_platform

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


async def ask(platform: Platform, version: Version, body: Any) -> tuple[int, Any]:
    url = platform.gateway.url + version.pexec
    async with platform.session.post(url, json=body, headers=platform.authorization()) as response:
        return response.status, await response.json()


async def test_the_network_learns_and_serves_in_batches(tmp_path: Path) -> None:
    points, labels = spirals(200, seed=3)
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version()
        await platform.start_worker(version, EXAMPLES / "batch" / "function.py")
        answers = await asyncio.gather(
            *(ask(platform, version, {"x": float(x), "y": float(y)}) for x, y in points)
        )
        assert all(status == 200 for status, _ in answers)
        right = sum(answer["spiral"] == label for (_, answer), label in zip(answers, labels, strict=True))
        assert right >= 190
        assert max(answer["batch"] for _, answer in answers) > 1
        bad: list[Any] = [{"x": 1}, {"x": True, "y": 0}, {"x": 2, "y": 2}, []]
        for body in bad:
            status, problem = await ask(platform, version, body)
            assert status == 400
            assert problem["detail"]


def test_without_training_it_knows_nothing() -> None:
    points, labels = spirals(1000, seed=3)
    right = ((Network.untrained(7)(points) > 0.5) == (labels > 0.5)).mean()
    assert 0.3 < right < 0.7


async def test_primes_are_counted_in_two_processes_and_a_crash_is_reported(tmp_path: Path) -> None:
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version()
        await platform.start_worker(version, EXAMPLES / "isolation" / "function.py")
        answers = await asyncio.gather(*(ask(platform, version, {"below": 300_000}) for _ in range(6)))
        assert [answer["primes"] for _, answer in answers] == [25_997] * 6
        assert len({answer["pid"] for _, answer in answers}) == 2
        status, problem = await ask(platform, version, {"below": 10, "crash": True})
        assert status == 500
        assert "SIGSEGV" in problem["detail"]
        status, answer = await ask(platform, version, {"below": 100})
        assert (status, answer["primes"]) == (200, 25)
        assert (await ask(platform, version, {"below": -1}))[0] == 400


def test_primes() -> None:
    assert [primes_below(limit) for limit in (0, 2, 3, 10, 100, 1000)] == [0, 0, 1, 4, 25, 168]
