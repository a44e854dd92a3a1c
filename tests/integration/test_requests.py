"""Requests through real processes: gateway, broker and worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.platform.gateways import Gateway, Platform, Version, running_platform
from tests.support.platform.processes import Child
from tests.support.waiting import eventually

FUNCTIONS = Path(__file__).parent.parent / "functions"


class Notes:
    """The notes of the handlers of tests/functions/slow.py, and their gate."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notes.jsonl"
        self.gate = directory / "gate"
        self.environment = {"NOTES": str(self.path), "GATE": str(self.gate)}

    def all(self, event: str) -> list[dict[str, Any]]:
        """Return all notes of one kind of event."""
        if not self.path.exists():
            return []
        notes = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [note for note in notes if note["event"] == event]


@contextlib.asynccontextmanager
async def platform_in(directory: Path, *flags: str, gateways: int = 1) -> AsyncIterator[Platform]:
    async with running_platform(directory, gateways=gateways, flags=flags) as platform:
        yield platform


async def post(platform: Platform, version: Version, body: Any, gateway: Gateway | None = None) -> Any:
    url = (gateway or platform.gateway).url + version.pexec
    async with platform.session.post(url, json=body, headers=platform.authorization()) as response:
        text = await response.text()
        assert response.status == 200, f"{response.status} {text}"
        return json.loads(text)


async def slow_worker(
    platform: Platform, version: Version, handler: str, notes: Notes, **options: Any
) -> Child:
    return await platform.start_worker(
        version, FUNCTIONS / "slow.py", handler, environment=notes.environment, **options
    )


async def test_many_callers_all_kinds_of_handlers(tmp_path: Path) -> None:
    """200 concurrent callers with 20 requests each: every response is right, the queue ends empty."""
    kinds = ["plain", "coroutine", "generator", "async_generator"]
    async with platform_in(tmp_path) as platform:
        versions = [await platform.deployed_version() for _ in kinds]
        for version, kind in zip(versions, kinds, strict=True):
            await platform.start_worker(version, FUNCTIONS / "kinds.py", kind, concurrency=16)

        async def caller(number: int) -> None:
            for turn in range(20):
                body = {"id": f"{number}-{turn}", "numbers": [number, turn, 1]}
                answer = await post(platform, versions[(number + turn) % 4], body)
                assert answer == {"id": body["id"], "sum": number + turn + 1}

        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(caller(number))
        for version in versions:
            await platform.queue_is_empty(version)


async def test_killed_worker_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL of a worker with requests in flight: another one serves them, each caller gets one response."""
    notes = Notes(tmp_path)
    notes.gate.touch()
    async with platform_in(tmp_path, "--ack-wait", "3") as platform:
        version = await platform.deployed_version()
        first = await slow_worker(platform, version, "hold", notes, concurrency=8)
        calls = [asyncio.create_task(post(platform, version, {"id": number})) for number in range(12)]
        await eventually(lambda: len(notes.all("start")) == 8, "the first worker holds 8 requests")
        first.kill()
        await first.wait()
        notes.gate.unlink()
        second = await slow_worker(platform, version, "hold", notes, concurrency=8)
        answers = await asyncio.gather(*calls)
        assert [answer["id"] for answer in answers] == list(range(12))
        assert {answer["pid"] for answer in answers} == {second.pid}
        assert sorted(note["id"] for note in notes.all("end")) == list(range(12))
        await platform.queue_is_empty(version)


async def test_restarted_instance_serves_the_requests_of_its_killed_process(tmp_path: Path) -> None:
    """With the same instance id and shared folder redelivery does not wait for the ack wait (30 s)."""
    notes = Notes(tmp_path)
    notes.gate.touch()
    shared = tmp_path / "shared"
    instance = "3b241101-e2bb-4255-8caf-4136c566a962"
    async with platform_in(tmp_path, "--ack-wait", "300") as platform:
        version = await platform.deployed_version()
        again = {"concurrency": 4, "instance_id": instance, "shared": shared}
        first = await slow_worker(platform, version, "hold", notes, **again)
        calls = [asyncio.create_task(post(platform, version, {"id": number})) for number in range(4)]
        await eventually(lambda: len(notes.all("start")) == 4, "the worker holds 4 requests")
        first.kill()
        await first.wait()
        notes.gate.unlink()
        second = await slow_worker(platform, version, "hold", notes, **again)
        answers = await asyncio.gather(*calls)
        assert {answer["pid"] for answer in answers} == {second.pid}
        await platform.queue_is_empty(version)


async def test_killed_worker_loses_no_large_body(tmp_path: Path) -> None:
    """The second worker reads a streamed body from its start again."""
    notes = Notes(tmp_path)
    notes.gate.touch()
    data = b"abcdefgh" * 500_000
    async with platform_in(tmp_path, "--ack-wait", "3") as platform:
        version = await platform.deployed_version()
        first = await slow_worker(platform, version, "count_body", notes)

        async def upload() -> Any:
            url = platform.gateway.url + version.pexec
            async with platform.session.post(url, data=data, headers=platform.authorization()) as response:
                return await response.json()

        call = asyncio.create_task(upload())
        await eventually(lambda: len(notes.all("start")) == 1, "the first worker reads the body")
        first.kill()
        await first.wait()
        notes.gate.unlink()
        second = await slow_worker(platform, version, "count_body", notes)
        assert await call == {"size": len(data), "pid": second.pid}


async def test_killed_broker_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL and restart of the broker with requests queued and in flight: all are completed."""
    notes = Notes(tmp_path)
    notes.gate.touch()
    async with platform_in(tmp_path, "--ack-wait", "5") as platform:
        version = await platform.deployed_version()
        await slow_worker(platform, version, "hold", notes, concurrency=4)
        calls = [asyncio.create_task(post(platform, version, {"id": number})) for number in range(20)]
        await eventually(lambda: len(notes.all("start")) == 4, "four requests are in work, 16 queued")
        client = await platform.broker_client()
        for call in calls:
            assert not call.done()
        await client.close()
        await platform.broker.kill()
        await platform.broker.start()
        notes.gate.unlink()
        answers = await asyncio.gather(*calls)
        assert sorted(answer["id"] for answer in answers) == list(range(20))
        await platform.queue_is_empty(version)
        # After that new requests are served too.
        assert (await post(platform, version, {"id": "after"}))["id"] == "after"


@pytest.mark.parametrize(
    ("handler", "event"),
    [("until_cancelled", "cancelled"), ("async_stream", "closed"), ("sync_stream", "closed")],
)
async def test_disconnect_of_the_caller_stops_the_handler(tmp_path: Path, handler: str, event: str) -> None:
    """After that the only slot is free for the next request."""
    notes = Notes(tmp_path)
    async with platform_in(tmp_path) as platform:
        version = await platform.deployed_version()
        await slow_worker(platform, version, handler, notes)
        headers = {**platform.authorization(), "function-id": version.function_id}

        async def leave() -> None:
            async with platform.session.post(platform.gateway.url + "/x", headers=headers) as response:
                await response.content.readany()
                await asyncio.Event().wait()

        call = asyncio.create_task(leave())
        await eventually(lambda: len(notes.all("start")) == 1, "the handler runs")
        call.cancel()
        await asyncio.wait({call})
        await eventually(lambda: len(notes.all(event)) == 1, f"the handler is {event}")
        async with platform.session.post(platform.gateway.url + "/x?quick=1", headers=headers) as response:
            assert await response.text() == "quick"
        await platform.queue_is_empty(version)


@pytest.mark.parametrize("handler", ["endless", "async_endless"])
async def test_slow_reader_of_an_endless_stream_costs_no_memory(tmp_path: Path, handler: str) -> None:
    notes = Notes(tmp_path)
    async with platform_in(tmp_path) as platform:
        version = await platform.deployed_version()
        worker = await slow_worker(platform, version, handler, notes)
        url = platform.gateway.url + version.pexec
        async with platform.session.post(url, headers=platform.authorization()) as response:
            for _ in range(16):
                await response.content.readexactly(256 * 1024)
            before = (platform.gateway.child.resident_mib(), worker.resident_mib())
            # Nobody reads now. A process that does not stop producing would grow by gigabytes.
            for _ in range(30):
                await asyncio.sleep(0.1)
                after = (platform.gateway.child.resident_mib(), worker.resident_mib())
                assert after[0] - before[0] < 24
                assert after[1] - before[1] < 24
            for _ in range(16):
                await response.content.readexactly(256 * 1024)


async def test_two_gateways_on_one_broker(tmp_path: Path) -> None:
    """A worker connected to one gateway serves a request that the other gateway accepted."""
    async with platform_in(tmp_path, gateways=2) as platform:
        one, two = platform.gateways
        version = await platform.deployed_version()
        await platform.start_worker(version, FUNCTIONS / "kinds.py", "coroutine", concurrency=4, gateway=one)
        for gateway in (two, one, two):
            answer = await post(platform, version, {"id": gateway.id, "numbers": [1, 2]}, gateway)
            assert answer == {"id": gateway.id, "sum": 3}
        # Each gateway works without the other, also without the one that the worker connected to.
        one.child.kill()
        await one.child.wait()
        answer = await post(platform, version, {"id": "alone", "numbers": [5]}, two)
        assert answer == {"id": "alone", "sum": 5}


async def test_stopping_worker_completes_requests_and_exits(tmp_path: Path) -> None:
    """SIGTERM: no new request is pulled, the ones in flight are completed, the exit code is 0."""
    notes = Notes(tmp_path)
    notes.gate.touch()
    async with platform_in(tmp_path) as platform:
        version = await platform.deployed_version()
        worker = await slow_worker(platform, version, "hold", notes, concurrency=2)
        calls = [asyncio.create_task(post(platform, version, {"id": number})) for number in range(2)]
        await eventually(lambda: len(notes.all("start")) == 2, "both slots are busy")
        worker.kill(signal.SIGTERM)
        queued = asyncio.create_task(post(platform, version, {"id": "later"}))
        notes.gate.unlink()
        assert [answer["id"] for answer in await asyncio.gather(*calls)] == [0, 1]
        assert await worker.wait() == 0
        assert not queued.done()
        await slow_worker(platform, version, "hold", notes)
        assert (await queued)["id"] == "later"


async def test_stopping_gateway_responds_to_waiting_callers(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    notes.gate.touch()
    async with platform_in(tmp_path) as platform:
        version = await platform.deployed_version()
        await slow_worker(platform, version, "hold", notes)
        call = asyncio.create_task(post(platform, version, {"id": 1}))
        await eventually(lambda: len(notes.all("start")) == 1, "the request is in work")
        platform.gateway.child.kill(signal.SIGTERM)
        notes.gate.unlink()
        assert (await call)["id"] == 1
        assert await platform.gateway.child.wait() == 0


async def test_a_handler_s_error_stays_inside(tmp_path: Path) -> None:
    """The problem has the request's id and no traceback, and the worker goes on."""
    async with platform_in(tmp_path) as platform:
        version = await platform.deployed_version()
        worker = await platform.start_worker(version, FUNCTIONS / "kinds.py", "plain")
        url = platform.gateway.url + version.pexec
        async with platform.session.post(
            url, json={"no": "id"}, headers=platform.authorization()
        ) as response:
            problem = await response.json()
            assert response.status == 500
            assert response.content_type == "application/problem+json"
            assert response.headers["nvcf-reqid"] in problem["detail"]
            assert "KeyError" not in json.dumps(problem)
            assert response.headers["nvcf-status"] == "errored"
        assert (await post(platform, version, {"id": 1, "numbers": []})) == {"id": 1, "sum": 0}
        assert "KeyError" in worker.text()


async def test_gateway_reports_why_it_cannot_start(tmp_path: Path) -> None:
    async with platform_in(tmp_path) as platform:
        taken = platform.gateway.url.removeprefix("http://")
        with pytest.raises(AssertionError) as caught:
            await platform.start_gateway("--http", taken)
        lines = str(caught.value)
        assert "cannot listen on" in lines
        assert "Traceback" not in lines
        broken = aiohttp.ClientTimeout(total=5)
        async with platform.session.get(platform.gateway.url + "/health", timeout=broken) as response:
            assert await response.json() == {"status": "ok"}
