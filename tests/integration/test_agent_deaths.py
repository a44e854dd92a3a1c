"""Crashes of workers, of the agent and of the broker, and records without a request."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.models import InstanceState
from tests.support.platform.agent_site import STEADY
from tests.support.platform.agents import Order, Site, alive, is_running, running_site
from tests.support.waiting import WAIT, eventually

PENDING, STARTING, RUNNING = InstanceState.PENDING, InstanceState.STARTING, InstanceState.RUNNING


TERMINATING, COMPLETED, FAILED = InstanceState.TERMINATING, InstanceState.COMPLETED, InstanceState.FAILED


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path) as made:
        yield made


# A termination message that a killed agent had pulled comes again after 30 s.
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_agent_killed_again_and_again_neither_loses_nor_doubles_an_instance(site: Site) -> None:
    version = await site.version(STEADY)
    wanted: set[str] = set()
    ended: set[str] = set()
    orders: list[Order] = []
    await site.start_agent()
    for _ in range(4):
        ending, *kept = await site.create(version, 3)
        orders += kept
        await site.end(version, ending)
        wanted |= {each.instance_id for each in kept}
        ended.add(ending.instance_id)
        await site.kill_agent()
        await site.send_again(kept[0])
        await site.start_agent()

    async def wanted_ones_run() -> bool:
        # What killed agents had pulled and not acknowledged comes again after the ack wait of 6 minutes.
        await site.order_again()
        return {each.id for each in site.of(version) if is_running(each)} == wanted

    await eventually(wanted_ones_run, "all wanted instances run", 150, story=site.log, interval=3.0)
    after = await site.until(
        version, lambda them: {each.id for each in them if each.state is COMPLETED} == ended
    )
    assert {each.id for each in after} == wanted | ended
    folders = site.data / "instances"
    await eventually(lambda: {each.name for each in folders.iterdir()} == wanted)
    own = [
        each for each in psutil.Process(site.agent.pid).children() if each.status() != psutil.STATUS_ZOMBIE
    ]
    assert {each.pid for each in own} == {each.pid for each in after if is_running(each)}


async def test_instances_ended_while_the_agent_was_dead_are_removed(site: Site) -> None:
    await site.start_agent()
    version = await site.version(STEADY)
    ended, closed, removed = await site.create(version, 3)
    await site.running(version, 3)
    await site.kill_agent()
    await site.end(version, ended)
    by_id = {each.request_id: each for each in site.of(version)}
    lost = by_id[closed.request_id].changed(time.time(), state=FAILED, reason="its cluster was silent")
    await site.instances.put(lost.key, lost)
    await site.instances.delete(by_id[removed.request_id].key)
    orphan = site.data / "instances" / new_id()
    orphan.mkdir()
    await site.start_agent()
    await site.states(version, COMPLETED, FAILED)
    (failed,) = [each for each in site.of(version) if each.state is FAILED]
    assert failed.reason == "its cluster was silent"
    await eventually(lambda: not (site.data / "instances" / removed.instance_id).exists())
    assert not orphan.exists()
    await site.free("CPU", 256)


async def test_sigterm_stops_workers_gracefully_and_keeps_their_ids(site: Site) -> None:
    agent = await site.start_agent()
    version = await site.version(STEADY)
    await site.create(version, 2)
    before = await site.running(version, 2)
    agent.terminate()
    assert await asyncio.wait_for(agent.wait(), WAIT) == 0
    for each in before:
        assert not alive(each.pid)
        assert (site.data / "instances" / each.id / "shared" / "left").read_text() == "in order"
    stopped = await site.states(version, STARTING, STARTING)
    assert {each.reason for each in stopped} == {"waiting: the agent was stopped"}
    await site.clusters.wait_for(lambda them: them.values()[0].draining, WAIT)
    await site.start_agent()
    after = await site.running(version, 2)
    assert {each.id for each in after} == {each.id for each in before}
    assert not site.clusters.values()[0].draining


async def test_without_a_gateway_an_instance_runs_on_and_is_reported_later(site: Site) -> None:
    await site.start_agent()
    version = await site.version(STEADY)
    (order,) = await site.create(version)
    (before,) = await site.running(version)
    gateway = site.platform.gateway.child
    gateway.kill(signal.SIGSTOP)
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    log = site.data / "logs" / "hello" / f"{order.instance_id}.log"
    await eventually(lambda: log.read_text().count("hello from the function") == 2, "it restarted")
    gateway.kill(signal.SIGCONT)
    (after,) = await site.until(version, lambda them: is_running(them[0]) and them[0].pid != before.pid)
    assert (after.id, after.restarts) == (before.id, 1)


async def test_instances_and_consumers_outlive_a_crash_of_the_broker(site: Site) -> None:
    await site.start_agent()
    version = await site.version(STEADY)
    await site.create(version)
    (before,) = await site.running(version)
    await site.broker.kill()
    await site.broker.start()
    await eventually(lambda: site.client.is_connected)
    await site.create(version)
    after = await site.running(version, 2)
    assert before.pid in {each.pid for each in after}
    await site.end(version, before)
    await site.states(version, COMPLETED, RUNNING)
