"""Rate limits that four gateways share, also when one or the broker is gone (protocol.md, section 4.12)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from nvcf_gateway.ratelimit.members import owner_of
from tests.support.platform.gateways import Gateway, Platform, Version, running_platform
from tests.support.platform.rate_limits import limited, limiter

pytestmark = pytest.mark.asyncio(loop_scope="module")


# The longest that a call may be held up by replicas or a broker that do not answer: generous on purpose.
LONGEST_DECISION = 3.0


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def four(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Four gateways on one broker."""
    async with running_platform(tmp_path_factory.mktemp("four"), gateways=4) as running:
        yield running


class Hammer:
    """Callers of all gateways at once, who count what passes."""

    def __init__(self) -> None:
        self.passed = 0
        self.refused = 0
        self.slowest = 0.0

    async def caller(self, ask: Any, version: Version, goes_on: Callable[[], bool]) -> None:
        """One caller, who stops when `goes_on` says so or when its gateway is gone."""
        while goes_on():
            begun = time.monotonic()
            try:
                passed = await ask(version)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    return
                raise
            self.slowest = max(self.slowest, time.monotonic() - begun)
            self.passed += passed
            self.refused += not passed


async def hammer(
    platform: Platform,
    version: Version,
    seconds: float,
    during: Any = None,
    callers: int = 4,
    least_refused: int = 0,
) -> Hammer:
    """All living gateways get `callers` callers each, for `seconds` and until so many calls were refused."""
    counts = Hammer()
    async with contextlib.AsyncExitStack() as stack:
        living = [gateway for gateway in platform.gateways if gateway.child.running]
        asks = [await stack.enter_async_context(limiter(gateway, platform)) for gateway in living]
        until = time.monotonic() + seconds

        def goes_on() -> bool:
            return time.monotonic() < until or counts.refused < least_refused

        async with asyncio.TaskGroup() as group:
            for ask in asks:
                for _ in range(callers):
                    group.create_task(counts.caller(ask, version, goes_on))
            if during is not None:
                group.create_task(during(counts))
    return counts


@pytest.mark.parametrize("sync", [True, False])
async def test_four_replicas_let_no_more_pass_than_one_percent_over_the_limit(
    four: Platform, sync: bool
) -> None:
    version = await limited(four, rate="400-H", syncCheck=sync)
    counts = await hammer(four, version, 3.0, least_refused=100)
    # Nothing is lost with the synchronous check; otherwise a replica may hold a small unused loan.
    assert (400 if sync else 360) <= counts.passed <= (400 if sync else 404)
    async with limiter(four.gateway, four) as ask:
        assert await ask(version, "another account")


@pytest.mark.parametrize("sync", [True, False])
async def test_over_many_windows_the_sum_stays_within_one_percent(four: Platform, sync: bool) -> None:
    version = await limited(four, rate="50-S", syncCheck=sync)
    begun = time.monotonic()
    counts = await hammer(four, version, 4.2)
    windows = int(time.monotonic() - begun) + 1
    assert counts.passed <= 50 * windows * 1.01
    assert counts.passed >= 50 * 3


async def counted_by(platform: Platform, gateway: Gateway, **policy: Any) -> Version:
    """A limited version that this gateway counts."""
    members = frozenset(each.id for each in platform.gateways)
    for _ in range(100):
        version = await platform.create_version()
        if owner_of(version.id, members) == gateway.id:
            break
    await platform.deploy(version)
    return await limited(platform, version, **policy)


async def test_the_death_of_the_replica_that_counts_frees_no_calls_and_delays_none(
    four: Platform,
) -> None:
    version = await counted_by(four, four.gateways[-1], rate="1000-H", syncCheck=True)

    async def kill_it(counts: Hammer) -> None:
        while counts.passed < 300:
            await asyncio.sleep(0.005)
        four.gateways.pop().child.kill()

    counts = await hammer(four, version, 4.0, kill_it, least_refused=100)
    assert counts.slowest < LONGEST_DECISION
    # What the dead one granted in its last moments may be unknown to its heir; what it granted and did
    # not get out any more is lost.
    assert 950 <= counts.passed <= 1050


async def test_a_frozen_replica_holds_calls_up_only_shortly(four: Platform) -> None:
    version = await counted_by(four, four.gateways[-1], rate="1000000-H", syncCheck=True)
    frozen = four.gateways.pop()
    frozen.child.kill(signal.SIGSTOP)
    try:
        counts = await hammer(four, version, 3.0)
    finally:
        frozen.child.kill(signal.SIGCONT)
    assert counts.passed > 100
    assert counts.refused == 0
    assert counts.slowest < LONGEST_DECISION


async def test_without_the_broker_calls_pass_within_each_replicas_own_limit(four: Platform) -> None:
    version = await limited(four, rate="100-H", syncCheck=True)
    await four.broker.stop(grace=0)
    try:
        counts = await hammer(four, version, 2.0)
    finally:
        await four.broker.start()
    assert counts.slowest < LONGEST_DECISION
    assert 100 <= counts.passed <= 100 * len(four.gateways)
