"""Progress, polls and lost gateways: real gateway, broker and worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.platform.gateways import Gateway, Platform, Version, running_platform
from tests.support.platform.processes import Child
from tests.support.waiting import eventually

FUNCTIONS = Path(__file__).parent.parent / "functions"
PEXEC = "/v2/nvcf/pexec/status/"
EXEC = "/v2/nvcf/exec/status/"


class Stage:
    """One worker process of tests/functions/staged.py, its notes and gates."""

    def __init__(self, platform: Platform, version: Version, worker: Child, directory: Path) -> None:
        self.platform, self.version, self.worker = platform, version, worker
        self._directory = directory

    def open(self, number: int) -> None:
        """Let the handler pass a gate."""
        (self._directory / f"gate{number}").unlink()

    def notes(self, event: str) -> list[dict[str, Any]]:
        """Return the notes of the handler."""
        path = self._directory / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [note for note in map(json.loads, lines) if note["event"] == event]

    async def ask(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        gateway: Gateway | None = None,
        **headers: str,
    ) -> tuple[int, Any, bytes]:
        """Make a call. Returns status, headers and body."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent |= self.platform.authorization()
        url = (gateway or self.platform.gateway).url + path
        async with self.platform.session.request(method, url, data=data, headers=sent) as response:
            return response.status, response.headers, await response.read()


@contextlib.asynccontextmanager
async def stage(
    directory: Path, *flags: str, gateways: int = 1, concurrency: int = 4, keep_queued: bool = True,
    silent: bool = False,
) -> AsyncIterator[Stage]:  # fmt: skip
    async with running_platform(directory, gateways=gateways, flags=flags) as platform:
        for number in (1, 2):
            (directory / f"gate{number}").touch()
        version = await platform.deployed_version(keep_queued=keep_queued)
        environment = {"NOTES": str(directory / "notes"), "GATE": str(directory / "gate")}
        environment["SILENT"] = "1" if silent else ""
        # Its token is from the first gateway, its requests from any.
        worker = await platform.start_worker(
            version, FUNCTIONS / "staged.py", "staged", concurrency=concurrency, environment=environment,
            gateway=platform.gateways[-1],
        )  # fmt: skip
        yield Stage(platform, version, worker, directory)


@pytest.mark.parametrize("keep_queued", [True, False])
async def test_progress_and_response_by_polls(tmp_path: Path, keep_queued: bool) -> None:
    async with stage(tmp_path, keep_queued=keep_queued) as play:
        call = asyncio.create_task(play.ask("POST", play.version.pexec, b"12345"))
        await eventually(lambda: len(play.notes("start")) == 1, "the handler runs")
        play.open(1)
        status, headers, body = await call
        assert (status, headers["nvcf-status"], headers["nvcf-percent-complete"]) == (
            202,
            "in-progress",
            "40",
        )
        assert json.loads(body) == {"part": "first"}
        request_id = headers["nvcf-reqid"]
        waiting = await play.ask("GET", PEXEC + request_id, NVCF_POLL_SECONDS="1")
        assert (waiting[0], waiting[1]["nvcf-percent-complete"]) == (202, "40")
        polls = [asyncio.create_task(play.ask("GET", PEXEC + request_id)) for _ in range(2)]
        # Most likely the polls wait by then. There is no sign of it, and later polls get the response too.
        await asyncio.sleep(0.2)
        play.open(2)
        for status, headers, body in await asyncio.gather(*polls):
            assert (status, headers["nvcf-status"]) == (200, "fulfilled")
            assert json.loads(body) == {"size": 5, "attempt": 1}
        await play.platform.queue_is_empty(play.version)


async def test_a_response_without_waiting_caller_is_stored(tmp_path: Path) -> None:
    async with stage(tmp_path, gateways=2) as play:
        call = asyncio.create_task(play.ask("POST", play.version.exec, b'{"requestBody": 1}'))
        await eventually(lambda: len(play.notes("start")) == 1, "the handler runs")
        play.open(1)
        wrapped = json.loads((await call)[2])
        assert (wrapped["status"], wrapped["percentComplete"]) == ("in-progress", 40)
        play.open(2)
        # The response is delivered and acknowledged although no caller waits. Every gateway has it now.
        await play.platform.queue_is_empty(play.version)
        status, _, body = await play.ask("GET", EXEC + wrapped["reqId"], gateway=play.platform.gateways[1])
        assert (status, json.loads(body)["response"]) == (200, {"size": 1, "attempt": 1})


async def test_the_end_of_the_poll_time_is_a_202(tmp_path: Path) -> None:
    async with stage(tmp_path, keep_queued=False, silent=True) as play:
        await eventually(lambda: "pulling requests" in play.worker.text(), "the worker is ready")
        status, headers, _ = await play.ask("POST", play.version.pexec, b"x", NVCF_POLL_SECONDS="2")
        assert (status, headers["nvcf-percent-complete"]) == (202, "0")
        poll = asyncio.create_task(play.ask("GET", PEXEC + headers["nvcf-reqid"]))
        play.open(1)
        play.open(2)
        assert json.loads((await poll)[2]) == {"size": 1, "attempt": 1}
        await play.platform.queue_is_empty(play.version)


@pytest.mark.parametrize("size", [5, 200_000])
async def test_a_killed_gateway_loses_no_idempotent_request(tmp_path: Path, size: int) -> None:
    """SIGKILL while the handler runs: the repeated call at another gateway gets the one result."""
    async with stage(tmp_path, gateways=2, silent=True) as play:
        one, two = play.platform.gateways
        body = b"x" * size
        key = {"Idempotency_Key": "the-only-one"}
        call = asyncio.create_task(play.ask("POST", play.version.pexec, body, one, **key))
        await eventually(lambda: len(play.notes("start")) == 1, "the handler runs")
        one.child.kill()
        await one.child.wait()
        await asyncio.wait({call})
        assert call.exception() is not None
        again = asyncio.create_task(play.ask("POST", play.version.pexec, body, two, **key))
        play.open(1)
        play.open(2)
        status, _, answer = await again
        assert (status, json.loads(answer)) == (200, {"size": size, "attempt": 1})
        assert len(play.notes("end")) == 1
        # Repeat the call once more after its completion.
        status, _, answer = await play.ask("POST", play.version.pexec, body, two, **key)
        assert json.loads(answer) == {"size": size, "attempt": 1}
        assert len(play.notes("start")) == 1


async def test_a_killed_gateway_and_a_killed_worker_lose_no_idempotent_request(tmp_path: Path) -> None:
    async with stage(tmp_path, "--ack-wait", "2", gateways=2, silent=True) as play:
        one, two = play.platform.gateways
        key = {"Idempotency_Key": "the-only-one"}
        call = asyncio.create_task(play.ask("POST", play.version.pexec, b"abc", one, **key))
        await eventually(lambda: len(play.notes("start")) == 1, "the handler runs")
        for child in (one.child, play.worker):
            child.kill()
            await child.wait()
        await asyncio.wait({call})
        call.exception()
        play.platform.gateways.remove(one)
        play.open(1)
        play.open(2)
        environment = {"NOTES": str(tmp_path / "notes"), "GATE": str(tmp_path / "gate"), "SILENT": "1"}
        await play.platform.start_worker(
            play.version, FUNCTIONS / "staged.py", "staged", environment=environment, gateway=two
        )
        status, _, answer = await play.ask("POST", play.version.pexec, b"abc", two, **key)
        assert (status, json.loads(answer)) == (200, {"size": 3, "attempt": 2})
