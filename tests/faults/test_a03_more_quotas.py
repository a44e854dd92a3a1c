"""A3, A18: quotas of connections, kept bodies, bodies in transit, and of what workers publish."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nvcf_gateway.access.publish_rates import Published, PublishRates
from nvcf_gateway.access.revocations import Revocations
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.quotas.limits import Limits, Quota
from nvcf_proto.ids import new_id
from nvcf_proto.subjects import fallback_subject
from nvcf_proto.tokens import encode_broker_token
from tests.faults.test_a03_quotas import ask
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.waiting import eventually

FUNCTION = """
from nvcf_worker import Request

async def size(request: Request) -> str:
    return str(len(await request.read()))
"""


def flags(**limits: int) -> tuple[str, ...]:
    """Return the gateway's flags for some quotas."""
    return tuple(
        part for name, limit in limits.items() for part in ("--quota", f"{name.replace('_', '-')}={limit}")
    )


async def used(platform: Platform, quota: str) -> int:
    """Return what `nvcf quotas` shows."""
    _, shown = await ask(platform, "GET", "/v2/nvcf/quotas", "admin")
    return int({each["quota"]: each["used"] for each in shown["quotas"]}[quota])


async def refusals(platform: Platform, path: str, **more: Any) -> tuple[int, str | None, str | None]:
    """Call; return status, the quota that a problem document names, and Retry-After."""
    url = platform.gateway.url + path
    headers = {**platform.authorization(), **more.pop("headers", {})}
    async with platform.session.post(url, headers=headers, **more) as response:
        problem = await response.json() if "problem" in response.content_type else {}
        return response.status, problem.get("quota"), response.headers.get("Retry-After")


async def test_a3_connections_of_an_account(tmp_path: Path) -> None:
    async with running_platform(tmp_path, flags=flags(connections=3)) as platform:
        version = await platform.deployed_version(keep_queued=False)
        calls = [asyncio.create_task(refusals(platform, version.pexec, data=b"x")) for _ in range(3)]

        async def all_wait() -> bool:
            return await used(platform, "connections") == 3

        await eventually(all_wait, "three callers wait")
        assert await refusals(platform, version.pexec, data=b"x") == (429, "connections", "5")
        async with peer_worker(platform, version) as worker:
            for _ in calls:
                work = await worker.pull()
                await work.answer()
        assert [status for status, _, _ in await asyncio.gather(*calls)] == [200] * 3

        async def none_waits() -> bool:
            return await used(platform, "connections") == 0

        await eventually(none_waits, "all have their answers")


async def test_a3_kept_bodies_count_for_the_account(tmp_path: Path) -> None:
    async with running_platform(tmp_path, flags=flags(kept_bytes=500_000)) as platform:
        version = await platform.deployed_version()
        kept = {"NVCF-POLL-SECONDS": "1"}
        body = b"x" * 350_000
        assert (await refusals(platform, version.pexec, data=body, headers=kept))[0] == 202
        assert await used(platform, "kept-bytes") > 300_000
        assert await refusals(platform, version.pexec, data=body, headers=kept) == (429, "kept-bytes", "5")
        # What fits into its message is no kept body.
        assert (await refusals(platform, version.pexec, data=b"x", headers=kept))[0] == 202


async def streamed(platform: Platform, version: Version, size: int) -> tuple[int, str | None, str | None]:
    """Call with a body that is streamed to the worker."""
    return await refusals(platform, version.pexec, data=b"x" * size)


async def test_a18_bodies_in_transit_of_an_account_and_of_all(tmp_path: Path) -> None:
    limits = (*flags(spooled_bytes=700_000), "--spool-max", "1")
    async with running_platform(tmp_path, flags=limits) as platform:
        (tmp_path / "function.py").write_text(FUNCTION)
        version = await platform.deployed_version(keep_queued=False)
        await platform.start_worker(version, tmp_path / "function.py", "size")
        assert (await streamed(platform, version, 600_000))[0] == 200
        assert await streamed(platform, version, 900_000) == (429, "spooled-bytes", "5")

        async def given_back() -> bool:
            return await used(platform, "spooled-bytes") == 0

        await eventually(given_back, "nothing is left")
        assert (await streamed(platform, version, 600_000))[0] == 200
    (tmp_path / "all").mkdir()
    limits = ("--spool-max", "1", *flags(spooled_bytes=10**9))
    async with running_platform(tmp_path / "all", flags=limits) as platform:
        version = await platform.deployed_version(keep_queued=False)
        await platform.start_worker(version, tmp_path / "function.py", "size")
        assert await streamed(platform, version, 2_000_000) == (503, None, "5")
        assert (await streamed(platform, version, 900_000))[0] == 200


async def test_a3_workers_that_publish_too_much_are_cut_off(tmp_path: Path) -> None:
    async with running_platform(tmp_path, flags=flags(published_messages=2000)) as platform:
        (tmp_path / "function.py").write_text(FUNCTION)
        version, instance = await platform.deployed_version(), new_id()
        victim = await platform.start_worker(version, tmp_path / "function.py", "size")
        token = encode_broker_token(await platform.worker_token(version, instance))
        address = platform.broker.url.removeprefix("nats://")
        subject = fallback_subject(version.id)

        async def flood(seconds: int) -> tuple[int | None, bytes]:
            command = (address, token, str(seconds), subject, "0", "300000")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.peers.broker_flood", *command,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            output, _ = await process.communicate()
            return process.returncode, output

        _, output = await flood(40)
        assert b"the broker ended the connection" in output
        code, _ = await flood(1)
        assert code != 0, "it may not connect again at once"
        # The same account's other worker goes on.
        status, _, _ = await refusals(platform, version.pexec, data=b"x")
        assert status == 200, victim.text()


def test_a3_who_publishes_too_much() -> None:
    rates = PublishRates(Limits({Quota.PUBLISHED_MESSAGES: 100, Quota.PUBLISHED_BYTES: 1000}))
    one, two, other = ("s", 1), ("s", 2), ("s", 3)

    def sample(now: float, *messages: int) -> list[tuple[str, int]]:
        accounts = ("a", "a", "b")
        pairs = zip((one, two, other), accounts, messages, strict=True)
        return rates.sample({key: (account, Published(count, count)) for key, account, count in pairs}, now)

    assert sample(10, 0, 0, 0) == []
    assert sample(20, 900, 50, 900) == [], "below the limit of each account"
    assert rates.of("a") == Published(95, 95)
    assert sample(30, 2000, 100, 1000) == [one], "not the other worker of the account, not the other account"
    assert rates.sample({other: ("b", Published(5000, 20_000))}, 40) == [other]
    assert rates.of("a") == Published()


def test_a3_a_server_that_receives_more_than_an_account_may_publish() -> None:
    limits = Limits(
        {Quota.PUBLISHED_MESSAGES: 100, Quota.PUBLISHED_BYTES: 1000}, {("a", Quota.PUBLISHED_BYTES): 500}
    )
    rates = PublishRates(limits)
    assert not rates.may_be_exceeded({"s": Published(10**6, 10**6)}, 1.0), "it may have run for long"
    assert not rates.may_be_exceeded({"s": Published(10**6 + 99, 10**6 + 499)}, 2.0)
    assert rates.may_be_exceeded({"s": Published(10**6 + 99, 10**6 + 1100), "t": Published()}, 3.0)
    assert rates.may_be_exceeded({"s": Published(10**6 + 299, 10**6 + 1100), "t": Published()}, 4.0)
    assert not rates.may_be_exceeded({"s": Published(0, 0)}, 5.0), "it has started anew"


def test_a3_sessions_count_as_connections() -> None:
    over = False

    def refuse(account: str) -> None:
        raise HttpProblem(429, account)

    registry: Any = SimpleNamespace()
    opened = Revocations(registry, lambda account: 2 if account == "a" else None, refuse)
    caller: Any = SimpleNamespace(nca_id="a", key=SimpleNamespace(id="k"))
    other: Any = SimpleNamespace(nca_id="b", key=SimpleNamespace(id="l"))
    for _ in range(2):
        opened.require_room("a")
        opened.watch_session(caller, "f", "v", lambda: over, lambda: None)
    for attempt in (lambda: opened.require_room("a"), lambda: opened.call(caller, "f")):
        with pytest.raises(HttpProblem) as refused:
            attempt()
        assert refused.value.status == 429
    opened.call(other, "f")
    over = True
    opened.check(0.0)
    assert opened.open_of("a") == 0
    opened.require_room("a")
