"""What a gateway tells the autoscaler: wake-ups at once, counters every second."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvcf_proto.compute import DemandReport, demand_subject, wake_subject
from tests.contract.gateway.test_polling import call
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_wake_up_and_reports(platform: Platform) -> None:
    version = await platform.deployed_version()
    client = await platform.broker_client()
    reports: list[DemandReport] = []

    async def reported(message: Any) -> None:
        reports.append(DemandReport.from_json(message.data))

    try:
        wakes = await client.subscribe(wake_subject(version.id))
        await client.subscribe(demand_subject(version.id), cb=reported)
        await client.flush()
        async with peer_worker(platform, version) as worker:
            task = asyncio.create_task(call(platform, "POST", version.pexec, b"x"))
            work = await worker.pull()
            wake = await wakes.next_msg(timeout=5)
            assert wake.data.decode() == work.request.requestId
            async with asyncio.timeout(10):
                while not reports or not reports[-1].busy_seconds:
                    await asyncio.sleep(0.05)
            assert (reports[-1].arrivals, reports[-1].waiting, reports[-1].completions) == (1, 1, 0)
            await work.answer()
            await task
            async with asyncio.timeout(10):
                while reports[-1].completions != 1:
                    await asyncio.sleep(0.05)
            assert (reports[-1].arrivals, reports[-1].waiting) == (1, 0)
            assert reports[-1].gateway_id == platform.gateway.id
    finally:
        await client.close()
