"""Batches, limits and child processes behind the real broker and gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.processes import Child
from tests.support.waiting import eventually

FUNCTIONS = Path(__file__).parent.parent / "functions"


class Served:
    """A function on its own platform."""

    def __init__(self, platform: Platform, version: Version, worker: Child, directory: Path) -> None:
        self.platform = platform
        self.version = version
        self.worker = worker
        self.notes_file = directory / "notes"

    def notes(self, text: str) -> int:
        """Return how often the function wrote this note."""
        return self.notes_file.read_text().count(text) if self.notes_file.exists() else 0

    def open(self, path: str, body: Any) -> Any:
        headers = {**self.platform.authorization(), "function-id": self.version.function_id}
        return self.platform.session.post(self.platform.gateway.url + path, json=body, headers=headers)

    async def ask(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.open(path, body) as response:
            is_json = "json" in response.content_type
            return response.status, await response.json() if is_json else await response.text()


@contextlib.asynccontextmanager
async def served(directory: Path, file: str, **environment: str) -> AsyncIterator[Served]:
    variables = {"NOTES": str(directory / "notes"), "GATE": str(directory / "gate"), **environment}
    async with running_platform(directory) as platform:
        version = await platform.deployed_version()
        worker = await platform.start_worker(version, FUNCTIONS / file, environment=variables)
        yield Served(platform, version, worker, directory)


@pytest.mark.parametrize("environment", [{}, {"PROCESSES": "1"}], ids=["thread", "process"])
async def test_batches_fill_and_one_bad_item_fails_alone(tmp_path: Path, environment: dict[str, str]) -> None:
    async with served(tmp_path, "batched.py", **environment) as function:
        numbers = [*range(12), *range(14, 40)]
        answers = await asyncio.gather(*(function.ask("/square", {"n": number}) for number in numbers))
        assert [answer["square"] for _, answer in answers] == [number * number for number in numbers]
        # Without a set concurrency the worker takes enough requests to fill its batches.
        assert max(answer["batch"] for _, answer in answers) == 8
        mixed = await asyncio.gather(*(function.ask("/square", {"n": number}) for number in (1, 13, 2)))
        assert [status for status, _ in mixed] == [200, 500, 200]
        status, problem = await function.ask("/square", {"n": "x"})
        assert (status, problem["detail"]) == (400, "n must be a whole number")
        kinds = await asyncio.gather(
            *(function.ask(f"/requests?kind={number % 2}", {"n": number}) for number in range(12))
        )
        assert [answer["body"]["n"] for _, answer in kinds] == list(range(12))
        assert [answer["kinds"] for _, answer in kinds] == [[str(number % 2)] for number in range(12)]
        await function.platform.queue_is_empty(function.version)


@pytest.mark.parametrize("path", ["/steps", "/iterators"])
async def test_each_item_of_a_batch_has_its_own_stream(tmp_path: Path, path: str) -> None:
    async with served(tmp_path, "batched.py") as function:
        numbers = [5, 1, 300, 7, 40, 2]
        answers = await asyncio.gather(*(function.ask(path, {"n": number}) for number in numbers))
        assert [text for _, text in answers] == [
            "".join(f"{line}\n" for line in range(number)) for number in numbers
        ]


async def test_continuous_batching_lets_requests_join_and_leave(tmp_path: Path) -> None:
    async with served(tmp_path, "batched.py") as function:
        async with function.open("/count", {"n": 100_000}) as endless:
            await endless.content.readline()
            # It joins the running loop and ends before the other. Both were in the same steps.
            status, text = await function.ask("/count", {"n": 5})
            assert status == 200
            assert [line.split()[0] for line in text.splitlines()] == ["1", "2", "3", "4", "5"]
            assert "2" in {line.split()[1] for line in text.splitlines()}
            assert (await function.ask("/count", {"n": -1}))[0] == 400
        # After the disconnect of its caller the slot and the state are released.
        await eventually(lambda: function.notes("finished") == 2, "the abandoned sequence has been finished")
        counts = await asyncio.gather(*(function.ask("/count", {"n": number}) for number in range(1, 13)))
        assert [len(text.splitlines()) for _, text in counts] == list(range(1, 13))
        assert max(int(line.split()[1]) for _, text in counts for line in text.splitlines()) <= 4


async def test_an_adaptive_worker_and_a_narrow_route(tmp_path: Path) -> None:
    async with served(tmp_path, "batched.py", ADAPTIVE="1") as function:
        for _ in range(3):
            answers = await asyncio.gather(*(function.ask("/narrow", {}) for _ in range(40)))
            assert all(status == 200 for status, _ in answers)
        assert max(answer["most"] for _, answer in answers) == 2
        await function.platform.queue_is_empty(function.version)


async def test_a_killed_child_costs_no_response(tmp_path: Path) -> None:
    """Kill processes with SIGKILL under load: each call gets one right response, the connection stays."""
    async with served(tmp_path, "isolated.py", PROCESSES="2", SLOTS="8") as function:
        killed = 0

        async def caller(number: int) -> set[int]:
            """Make calls until four processes are killed, and five more."""
            pids: set[int] = set()
            made = more = 0
            while more < 5:
                status, result = await function.ask("/coroutine", {"n": [number, made]})
                assert status == 200
                assert result["body"] == {"n": [number, made]}
                pids.add(result["pid"])
                made, more = made + 1, more + (killed == 4)
            return pids

        def both_run() -> bool:
            return function.worker.text().count("is ready (pid") == killed + 2 or callers.done()

        assert (await function.ask("/coroutine", {}))[0] == 200
        callers = asyncio.gather(*(caller(number) for number in range(8)))
        worker = psutil.Process(function.worker.pid)
        while killed < 4 and not callers.done():
            await eventually(both_run, "both child processes run")
            if not callers.done():
                os.kill(worker.children()[killed % 2].pid, signal.SIGKILL)
                killed += 1
        seen = set().union(*await callers)
        assert len(seen) >= 3
        await function.platform.queue_is_empty(function.version)
        assert function.worker.text().count("connected to the broker") == 1


async def test_the_caller_learns_the_cause_of_a_crash(tmp_path: Path) -> None:
    async with served(tmp_path, "isolated.py") as function:
        status, answer = await function.ask("/die/segfault", {})
        assert (status, answer["attempt"]) == (200, 2)
        status, problem = await function.ask("/die/kill?always=1", {})
        assert status == 500
        assert "SIGKILL" in problem["detail"]


async def test_progress_of_a_child_reaches_the_caller(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    async with served(tmp_path, "isolated.py") as function:
        platform = function.platform
        headers = {**platform.authorization(), "NVCF-POLL-SECONDS": "30"}
        url = platform.gateway.url + function.version.pexec
        async with platform.session.post(url, json={}, headers=headers) as response:
            assert response.status == 202
            assert response.headers["nvcf-percent-complete"] == "40"
            request_id = response.headers["nvcf-reqid"]
        gate.unlink()
        url = f"{platform.gateway.url}/v2/nvcf/pexec/status/{request_id}"
        async with platform.session.get(url, headers=headers) as response:
            assert response.status == 200
            answer = await response.json()
        assert answer["output"] is True
        assert answer["pid"] != function.worker.pid
