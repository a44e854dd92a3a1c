"""The leader lease, at a real API server."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.kinds import LEASE
from nvcf_agent.kubernetes.client.lease import Lease, LeaseTimes
from tests.kubernetes.cluster.clusters import Cluster
from tests.kubernetes.frozen_relay import FrozenRelay
from tests.support.waiting import eventually

NAME = "agent"
FAST = LeaseTimes(duration=3, give_up=2.0, retry=0.2)


async def holder(api: Api, namespace: str) -> str:
    found = await api.get(LEASE, NAME, namespace)
    assert found is not None
    return str(found["spec"]["holderIdentity"])


async def test_one_leads_and_hands_over_when_it_leaves(api: Api, namespace: str) -> None:
    async with Lease(api, namespace, NAME, "agent", FAST).leading() as first:
        assert first.is_held
        assert await holder(api, namespace) == first.identity
        # The same name is another process all the same.
        waiting = asyncio.create_task(Lease(api, namespace, NAME, "agent", FAST).acquire())
        # It is renewed for much longer than it is valid.
        done, _ = await asyncio.wait([waiting], timeout=2 * FAST.duration)
        assert not done
        assert first.is_held
    began = asyncio.get_running_loop().time()
    await asyncio.wait_for(waiting, 60)
    assert asyncio.get_running_loop().time() - began < FAST.duration
    assert not first.is_held
    lease = await api.get(LEASE, NAME, namespace)
    assert lease is not None
    assert lease["spec"]["leaseTransitions"] == 2


async def test_a_leader_that_cannot_renew_stops_before_another_begins(
    api: Api, frozen: FrozenRelay, namespace: str
) -> None:
    clock = asyncio.get_running_loop().time
    async with await Api.open(str(frozen.kubeconfig)) as through:
        async with Lease(through, namespace, NAME, "first", FAST).leading() as first:
            second = Lease(api, namespace, NAME, "second", FAST)
            waiting = asyncio.create_task(second.acquire())
            frozen.freeze()
            await asyncio.wait_for(first.lost(), 60)
            stopped = clock()
            assert not first.is_held
            assert not waiting.done()
            await asyncio.wait_for(waiting, 60)
            assert second.is_held
            assert clock() - stopped > (FAST.duration - FAST.give_up) / 2
            frozen.thaw()
        assert await holder(api, namespace) == second.identity


async def test_a_deleted_lease_makes_no_second_leader(api: Api, namespace: str) -> None:
    async with Lease(api, namespace, NAME, "first", FAST).leading() as first:
        second = Lease(api, namespace, NAME, "second", FAST)
        waiting = asyncio.create_task(second.acquire())
        await api.delete(LEASE, NAME, namespace)
        await asyncio.wait_for(first.lost(), 60)
        assert not waiting.done()
        await asyncio.wait_for(waiting, 60)
        assert not first.is_held
        assert second.is_held


async def test_the_first_of_all_need_not_wait(api: Api, namespace: str) -> None:
    async def is_first() -> bool:
        return True

    slow = LeaseTimes(duration=300, give_up=200.0, retry=0.2)
    async with Lease(api, namespace, NAME, "first", slow, is_first).leading() as first:
        assert first.is_held
        assert await holder(api, namespace) == first.identity
        # One that has seen a lease knows better.
        second = Lease(api, namespace, NAME, "second", FAST, is_first)
        waiting = asyncio.create_task(second.acquire())
        done, _ = await asyncio.wait([waiting], timeout=1)
        assert not done
        await api.delete(LEASE, NAME, namespace)
        await asyncio.wait_for(first.lost(), 60)
        await asyncio.wait_for(waiting, 60)
        assert second.transitions == 1, "it was somebody's before"


async def test_what_others_write_into_the_lease_does_not_end_it(api: Api, namespace: str) -> None:
    async with Lease(api, namespace, NAME, "first", FAST).leading() as first:
        until = first._until
        await api.patch(LEASE, NAME, namespace, {"metadata": {"labels": {"seen": "yes"}}})
        await eventually(lambda: first._until > until, "it is renewed")
        assert first.is_held


@pytest.mark.slow
async def test_never_two_lead(api_server: Cluster, namespace: str, tmp_path: Path) -> None:
    """Four candidates whose connections freeze at random: whoever leads is the only one."""
    leases: list[Lease] = []
    terms = 0

    async def candidate(api: Api, index: int) -> None:
        nonlocal terms
        while True:
            async with Lease(api, namespace, NAME, f"agent-{index}", FAST).leading() as lease:
                leases[index] = lease
                others = [each.identity for each in leases if each is not lease and each.is_held]
                assert not others, f"{lease.identity} leads beside {others}"
                terms += 1
                await lease.lost()

    async def trouble(relay: FrozenRelay, chance: random.Random) -> None:
        while True:
            await asyncio.sleep(chance.uniform(0.5, 5.0))
            relay.freeze()
            await asyncio.sleep(chance.uniform(0.5, 5.0))
            relay.thaw()

    async with AsyncExitStack() as stack:
        tasks = []
        for index in range(4):
            relay = FrozenRelay(api_server, tmp_path)
            stack.callback(relay.close)
            api = await stack.enter_async_context(await Api.open(str(relay.kubeconfig)))
            leases.append(Lease(api, namespace, NAME, "none", FAST))
            tasks.append(asyncio.create_task(candidate(api, index)))
            tasks.append(asyncio.create_task(trouble(relay, random.Random(index))))
        done, _ = await asyncio.wait(tasks, timeout=40, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()
    assert terms >= 3
