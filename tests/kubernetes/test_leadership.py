"""An agent that loses its lease, and gets it back or goes."""

from __future__ import annotations

import asyncio

import pytest

from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.lease import Lease, LeaseTimes
from nvcf_agent.kubernetes.leadership import LEASE_NAME, AnotherLeads, Leadership
from tests.kubernetes.frozen_relay import FrozenRelay
from tests.support.waiting import eventually

FAST = LeaseTimes(duration=3, give_up=2.0, retry=0.2)


async def test_a_lease_that_nobody_else_had_meanwhile_is_taken_up_again(
    frozen: FrozenRelay, namespace: str
) -> None:
    stalled: list[bool] = []
    async with await Api.open(str(frozen.kubeconfig)) as through:
        leadership = Leadership(through, namespace, "first", FAST)
        await leadership.acquire()
        keeping = asyncio.create_task(leadership.keep(stalled.append))
        frozen.freeze()
        await eventually(lambda: stalled == [True], "it stops")
        assert not leadership.is_held
        frozen.thaw()
        await eventually(lambda: stalled == [True, False], "it goes on")
        assert leadership.is_held
        keeping.cancel()
        await asyncio.wait([keeping])
        await leadership.close()


@pytest.mark.parametrize("stays", [True, False])
async def test_an_agent_goes_if_another_one_leads_or_has_led_meanwhile(
    api: Api, frozen: FrozenRelay, namespace: str, stays: bool
) -> None:
    async with await Api.open(str(frozen.kubeconfig)) as through:
        leadership = Leadership(through, namespace, "first", FAST)
        await leadership.acquire()
        keeping = asyncio.create_task(leadership.keep(lambda _: None))
        frozen.freeze()
        async with Lease(api, namespace, LEASE_NAME, "second", FAST).leading() as second:
            assert not leadership.is_held
            if stays:
                frozen.thaw()
                done, _ = await asyncio.wait([keeping], timeout=60)
                assert done
                assert second.is_held
        frozen.thaw()
        await asyncio.wait([keeping], timeout=60)
        ended = keeping.exception()
        while isinstance(ended, BaseExceptionGroup):
            (ended,) = ended.exceptions
        assert isinstance(ended, AnotherLeads)
        await leadership.close()
