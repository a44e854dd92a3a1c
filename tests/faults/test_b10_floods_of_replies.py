"""B10: one worker that floods a gateway with inline replies slowed the calls of all accounts."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats.aio.client import Client

from nvcf_gateway.exchange.reply_subjects import MOST_REFUSALS, UNIT_BYTES, Refusals
from nvcf_proto.ids import new_id
from nvcf_proto.tokens import encode_broker_token
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.victims import compared, felt
from tests.support.waiting import eventually

FUNCTION = """
from nvcf_worker import Request

async def hello(request: Request) -> str:
    return "hello"
"""


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path) as started:
        yield started


async def reply_subject(platform: Platform, version: Version, instance: str, token: str) -> str:
    """Take one request as a worker, and return where its gateway wants an inline reply."""
    client, found = Client(), asyncio.get_running_loop().create_future()
    await client.connect(
        platform.broker.url,
        token=encode_broker_token(token),
        inbox_prefix=f"_INBOX.{version.id}.{instance}".encode(),
    )

    async def take(message: object) -> None:
        headers = getattr(message, "headers", None) or {}
        if not found.done() and "Nvcf-Reply-Subject" in headers:
            found.set_result(headers["Nvcf-Reply-Subject"])

    try:
        inbox = client.new_inbox()
        await client.subscribe(inbox, cb=take)
        calling = asyncio.create_task(call(platform, version))
        stream = f"rq_local_{version.id}"
        pull = json.dumps({"expires": 1_000_000_000, "batch": 1}).encode()

        async def pulled() -> bool:
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers", pull, reply=inbox)
            await asyncio.sleep(0.2)
            return bool(found.done())

        await eventually(pulled, "a request comes")
        calling.cancel()
        return str(found.result())
    finally:
        await client.close()


async def call(platform: Platform, version: Version) -> tuple[int, bytes]:
    """Call a function."""
    url = platform.gateway.url + version.pexec
    async with platform.session.post(url, data=b"x", headers=platform.authorization()) as response:
        return response.status, await response.read()


@dataclass(frozen=True)
class Stage:
    """A function that is called, and a version of another function, which floods the gateway."""

    attacker: Version
    address: str
    token: str
    subject: str
    headers: dict[str, str]

    async def flood(self, seconds: float, size: int, rate: int) -> int:
        """Flood from a process of its own; return how many messages it sent."""
        token, subject = encode_broker_token(self.token), f"{self.subject}.{new_id()}"
        arguments = [self.address, token, str(seconds), subject, str(size), str(rate)]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.peers.broker_flood",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        return int(output)


@pytest.fixture
async def stage(platform: Platform, tmp_path: Path) -> Stage:
    (tmp_path / "function.py").write_text(FUNCTION)
    victim, attacker = await platform.deployed_version(), await platform.deployed_version()
    await platform.start_worker(victim, tmp_path / "function.py", "hello", concurrency=16)
    instance = new_id()
    token = await platform.worker_token(attacker, instance)
    subject = (await reply_subject(platform, attacker, instance, token)).rpartition(".")[0]
    assert await call(platform, victim) == (200, b"hello"), "the worker is there"
    headers = {**platform.authorization(), "function-id": victim.function_id}
    return Stage(attacker, platform.broker.url.removeprefix("nats://"), token, subject, headers)


async def test_b10_others_keep_half_their_rate(platform: Platform, stage: Stage, tmp_path: Path) -> None:
    await felt(platform.gateway.url, headers=stage.headers)
    sent = []

    async def attack(seconds: float) -> None:
        sent.append(await stage.flood(seconds, 0, 3_000_000))

    await compared(platform.gateway.url, "inline replies", attack, headers=stage.headers)
    assert min(sent) > 10_000
    # The version that is shut out is served all the same, by request-attach.
    await platform.start_worker(stage.attacker, tmp_path / "function.py", "hello", concurrency=16)
    assert await call(platform, stage.attacker) == (200, b"hello")


@pytest.mark.slow
async def test_b10_large_replies_are_cut_off(platform: Platform, stage: Stage) -> None:
    """200 KB at 200 MB/s: the broker itself has to read them, so their connection is ended."""
    flooding = asyncio.create_task(stage.flood(120.0, 200_000, 200_000_000))
    began = asyncio.get_running_loop().time()
    during = await felt(platform.gateway.url, headers=stage.headers)
    sent = await flooding
    took = asyncio.get_running_loop().time() - began
    after = await felt(platform.gateway.url, headers=stage.headers)
    print(f"large replies: {sent}, during {during}; cut off after {took:.1f} s; then {after}")  # noqa: T201
    assert sent > 100
    assert took < 60, "the flood was not ended"


def test_b10_what_is_a_flood_and_for_how_long_it_is_shut_out() -> None:
    refusals = Refusals()
    assert not any(refusals.is_flood(0, 10 + each / 1000) for each in range(MOST_REFUSALS))
    assert refusals.is_flood(0, 10.99)
    assert refusals.shut(11) == 10
    assert not refusals.is_flood(0, 22)
    assert refusals.is_flood(MOST_REFUSALS * UNIT_BYTES, 22.1)
    assert [refusals.shut(now) for now in (22.1, 50, 100, 200, 400, 1000, 2000)] == [
        20, 40, 80, 160, 320, 600, 600,
    ]  # fmt: skip
    assert refusals.shut(4000) == 10, "it was quiet for long"
