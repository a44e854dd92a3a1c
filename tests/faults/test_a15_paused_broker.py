"""A15: a broker that stands still and goes on: no call waits for its ack wait, no client goes deaf."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import aiohttp
import nats.errors
import pytest

from nvcf_broker.connection import connect_broker
from nvcf_broker.server import LocalBroker
from tests.support.platform.gateways import running_platform
from tests.support.platform.processes import stopped
from tests.support.waiting import eventually

ECHO = Path(__file__).parents[1] / "functions" / "echo.py"
EXECUTIONS = ECHO.with_name("executions.py")
NO_HEARTBEAT = "no heartbeat from the broker"


@pytest.mark.slow
async def test_calls_of_a_pause_are_answered_after_it(tmp_path: Path) -> None:
    async with running_platform(tmp_path, flags=("--ack-wait", "600")) as platform:
        version = await platform.deployed_version()
        worker = await platform.start_worker(version, ECHO, "echo", concurrency=8)
        url, headers = platform.gateway.url + version.pexec, platform.authorization()

        async def call() -> int:
            async with platform.session.post(url, data=b"x", headers=headers) as response:
                await response.read()
                return response.status

        assert await call() == 200
        async with stopped(platform.broker.pid):
            calls = [asyncio.create_task(call()) for _ in range(3)]
            await eventually(lambda: NO_HEARTBEAT in worker.text(), "the worker misses heartbeats")
        async with asyncio.timeout(60):
            assert await asyncio.gather(*calls) == [200, 200, 200]
        assert "pulling anew" not in worker.text(), "its pulls are still there"


@pytest.mark.slow
async def test_a_call_that_is_cut_in_a_pause_is_repeated_and_gets_its_answer(tmp_path: Path) -> None:
    """Its last byte waits for the store. What the worker then brings again is kept under its key."""
    notes = tmp_path / "notes"
    notes.touch()
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version()
        await platform.start_worker(version, EXECUTIONS, "once", environment={"NOTES": str(notes)})
        url, body = platform.gateway.url + version.pexec, {"id": "cut", "seconds": 1, "pad": 400_000}
        headers = {**platform.authorization(), "Idempotency-Key": "cut"}
        heads = []

        async def call() -> tuple[int, bytes]:
            async with platform.session.post(url, json=body, headers=headers) as response:
                heads.append(response.status)
                return response.status, await response.read()

        async def answered() -> bytes:
            async with asyncio.timeout(60):
                while True:
                    # The next one may be cut as well, until the store works again.
                    with contextlib.suppress(aiohttp.ClientError):
                        status, answer = await call()
                        if status == 200:
                            return answer
                        assert status == 503

        first = asyncio.create_task(call())
        await eventually(notes.read_text, "the handler runs")
        async with stopped(platform.broker.pid):
            with pytest.raises(aiohttp.ClientError):
                await first
            assert heads == [200], "it is cut after its head"
        answer = await answered()
        [execution] = [json.loads(line)["execution"] for line in notes.read_text().splitlines()]
        assert json.loads(answer)["execution"] == execution
        assert await answered() == answer


async def test_a_client_whose_flush_timed_out_still_hears(tmp_path: Path) -> None:
    async with LocalBroker(tmp_path / "broker") as broker:
        client = await connect_broker(broker.url, broker.credentials_file, name="test")
        heard = asyncio.Event()

        async def hear(_message: object) -> None:
            heard.set()

        try:
            await client.subscribe("test", cb=hear)
            await client.flush()
            async with stopped(broker.pid):
                with pytest.raises((nats.errors.Error, TimeoutError)):
                    await client.flush(1)
            await client.publish("test", b"")
            async with asyncio.timeout(30):
                await heard.wait()
            await client.flush(30)
        finally:
            await client.close()


async def test_a_client_that_cannot_read_on_connects_anew(tmp_path: Path) -> None:
    async with LocalBroker(tmp_path / "broker") as broker:
        client = await connect_broker(broker.url, broker.credentials_file, name="test")
        reconnects: list[int] = []
        client.on_reconnect(lambda: reconnects.append(1))

        async def fails(_data: bytes) -> None:
            raise RuntimeError("a fault of the library")

        try:
            client._ps.parse = fails  # type: ignore[assignment]
            await client.publish("$SYS.nobody", b"")
            await client._send_ping()
            await eventually(lambda: client.is_reconnecting or reconnects, "it notices", 15)
            del client._ps.parse
            await eventually(lambda: reconnects, "it is connected again")
            await client.flush(30)
        finally:
            await client.close()
