"""B4: large bodies that are parsed take neither the loop nor the memory from others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from nvcf_gateway.exchange.sinks import CollectSink
from nvcf_gateway.http.body_budget import BodyBudget
from nvcf_proto.errors import H1Error
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.victims import compared

pytestmark = pytest.mark.asyncio(loop_scope="module")
MIB = 1024 * 1024


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and one gateway."""
    directory: Path = tmp_path_factory.mktemp("bodies")
    async with running_platform(directory) as running:
        yield running


def worst(size: int) -> bytes:
    """Return JSON that is costly to parse, and turns out at its end to be none."""
    return b'{"requestBody":[' + b"[]," * (size // 3 - 10) + b"x"


async def posted(platform: Platform, path: str, body: bytes, seconds: float) -> None:
    """Send a body again and again, from four callers."""
    end = asyncio.get_running_loop().time() + seconds
    timeout = aiohttp.ClientTimeout(total=60)

    async def caller(session: aiohttp.ClientSession) -> None:
        while asyncio.get_running_loop().time() < end:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(
                    platform.gateway.url + path, data=body, headers=platform.authorization()
                ) as response:
                    assert response.status in (400, 413, 503), await response.text()

    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(caller(session) for _ in range(4)))


async def test_b04_large_parses_leave_others_half_their_rate(platform: Platform) -> None:
    version = await platform.deployed_version()
    for what, path, size in (
        ("exec", version.exec, 7 * MIB),
        ("management", "/v2/nvcf/functions", 120 * 1024),
        ("telemetry endpoints", "/v2/nvcf/telemetries", 120 * 1024),
    ):
        body = worst(size)
        url = platform.gateway.url + "/health"
        await compared(url, what, lambda seconds, path=path, body=body: posted(platform, path, body, seconds))  # type: ignore[misc]


def memory(platform: Platform) -> int:
    """Return the resident memory of the gateway, bytes."""
    pages = Path(f"/proc/{platform.gateway.child.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


async def stalled(
    platform: Platform, version: Version, size: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send an exec body all but its last byte."""
    host, _, port = platform.gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    key = platform.authorization()["Authorization"]
    head = (
        f"POST {version.exec} HTTP/1.1\r\nHost: a\r\nAuthorization: {key}\r\nContent-Length: {size}\r\n\r\n"
    )
    writer.write(head.encode())
    with contextlib.suppress(ConnectionError):
        writer.write(b" " * (size - 1))
        await writer.drain()
    return reader, writer


async def test_b04_stalled_bodies_of_one_account_leave_room_for_others(platform: Platform) -> None:
    version = await platform.deployed_version()
    path = f"/v2/nvcf/functions/{version.function_id}/authorizations"
    await platform.call("PUT", path, {"authorizedParties": [{"ncaId": "account-two"}]})
    before = memory(platform)
    held = await asyncio.gather(*(stalled(platform, version, 7 * MIB) for _ in range(26)))
    answers = await asyncio.gather(
        *(asyncio.wait_for(reader.read(4000), 3) for reader, _ in held), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, bytes) and b" 503 " in answer]
    assert len(refused) >= 5, answers
    assert all(b"Retry-After" in answer for answer in refused)
    assert memory(platform) - before < 400 * MIB
    inner = "x" * 300_000
    body = json.dumps({"requestBody": inner}).encode()
    async with peer_worker(platform, version) as worker:
        call = asyncio.create_task(answered(platform, version, body))
        work = await worker.pull()
        assert json.loads(work.request.requestBody + (await work.get())[2]) == inner
        await work.answer(b"1", "200 OK", "Content-Type: application/json")
        assert await call == 200
    for _, writer in held:
        writer.transport.abort()


async def answered(platform: Platform, version: Version, body: bytes) -> int:
    headers = platform.authorization("foreign")
    async with platform.session.post(platform.gateway.url + version.exec, data=body, headers=headers) as got:
        return got.status


async def test_b04_bodies_beyond_the_limits_are_413(platform: Platform) -> None:
    version = await platform.deployed_version()
    for path, size in ((version.exec, 9 * MIB), ("/v2/nvcf/functions", 200 * 1024)):
        async with platform.session.post(
            platform.gateway.url + path, data=b" " * size, headers=platform.authorization()
        ) as response:
            assert response.status == 413


async def test_b04_answers_of_exec_calls_count_for_the_same_budget() -> None:
    budget = BodyBudget(total=400_000, per_account=200_000)
    with budget.room("a") as one, budget.room("a") as two, budget.room("b") as other:
        first, second, third = (CollectSink(1_000_000, grow) for grow in (one, two, other))
        await first.write(b"x" * 150_000)
        with pytest.raises(H1Error, match="too many large bodies of this account"):
            await second.write(b"x" * 100_000)
        await third.write(b"x" * 150_000)
    with budget.room("a") as again:
        await CollectSink(1_000_000, again).write(b"x" * 150_000)
