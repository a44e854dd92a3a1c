"""Function calls that a gateway and a worker make for one request. They do not depend on the machine."""

from __future__ import annotations

import json
import os
import pstats
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from nvcf_proto.models import InstanceState
from tests.support.platform.gateways import running_platform
from tests.support.platform.records import add_instance
from tests.support.waiting import eventually

TESTS = Path(__file__).parents[2]
COUNTING = TESTS / "support" / "counting"
BODY = json.dumps({"data": "x" * 1010}).encode()
WARM_UP = 100

Entry = tuple[str, int, str]
"""File, line and name of a function; the file of what is not written in Python is `~`."""


@dataclass(frozen=True)
class Counts:
    """Calls of each function, for one request."""

    functions: Mapping[Entry, float]

    @property
    def all(self) -> float:
        """Calls of all functions, of Python's and the libraries' own too: they differ between versions."""
        return sum(self.functions.values())

    @property
    def own(self) -> float:
        """Calls of functions of this project.

        Comprehensions are no functions since Python 3.12 and are left out, so all versions count alike.
        """
        return sum(
            count
            for (file, _, name), count in self.functions.items()
            if "/nvcf_" in file and not (name.startswith("<") and name.endswith("comp>"))
        )

    def most_called(self, number: int) -> Sequence[tuple[Entry, float]]:
        """Return the functions that are called most."""
        return sorted(self.functions.items(), key=lambda each: -each[1])[:number]


async def count_calls(directory: Path, requests: int, *, keyed: bool = False) -> dict[str, Counts]:
    """Make requests one after the other, after a warm-up; return the counts of gateway and worker.

    With `keyed` each request has an idempotency key of its own.
    """
    folder = directory / "counts"
    folder.mkdir()
    variables = {"PYTHONPATH": str(COUNTING), "NVCF_TEST_COUNTS": str(folder)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        async with running_platform(directory) as platform:
            version = await platform.deployed_version()
            file = TESTS / "functions" / "echo.py"
            worker = await platform.start_worker(version, file, "echo", concurrency=16, environment=variables)
            # Without its record each request would wake the autoscaler.
            await add_instance(platform, version, InstanceState.RUNNING)
            pids = {"gateway": platform.gateway.child.pid, "worker": worker.pid}

            async def call(number: int) -> None:
                headers = platform.authorization()
                if keyed:
                    headers["Idempotency-Key"] = f"key-{number}"
                url = platform.gateway.url + version.pexec
                async with platform.session.post(url, data=BODY, headers=headers) as response:
                    assert await response.read() == BODY, response.status

            async def signal_all(suffix: str) -> None:
                for pid in pids.values():
                    os.kill(pid, signal.SIGUSR2)
                files = [folder / f"{pid}{suffix}" for pid in pids.values()]
                await eventually(lambda: all(file.exists() for file in files), "the processes have counted")

            for number in range(WARM_UP):
                await call(number)
            await signal_all(".on")
            for number in range(WARM_UP, WARM_UP + requests):
                await call(number)
            await signal_all("")
    return {name: Counts(_per_request(folder / str(pid), requests)) for name, pid in pids.items()}


def _per_request(file: Path, requests: int) -> dict[Entry, float]:
    # Of each function: how often it was called, not counting recursion and with it, two times, its callers.
    found: dict[Entry, tuple[int, int, float, float, object]] = vars(pstats.Stats(str(file)))["stats"]
    return {entry: figures[1] / requests for entry, figures in found.items()}
