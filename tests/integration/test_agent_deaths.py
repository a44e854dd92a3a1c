"""Crashes of workers, of the agent and of the broker, and records without a request."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from nvcf_proto.compute import CREATE_STREAM
from nvcf_proto.ids import new_id
from nvcf_proto.models import InstanceState
from tests.support.platform.agents import HEALTH, STEADY, Site, alive, is_running, running_site
from tests.support.waiting import WAIT, eventually

PENDING, STARTING, RUNNING = InstanceState.PENDING, InstanceState.STARTING, InstanceState.RUNNING


TERMINATING, COMPLETED, FAILED = InstanceState.TERMINATING, InstanceState.COMPLETED, InstanceState.FAILED


STUBBORN = HEALTH + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STEADY[len(HEALTH) :]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path) as made:
        yield made


async def test_a_killed_agent_leaves_no_process_and_its_successor_takes_over(site: Site) -> None:
    helper = "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    note = "(shared / 'helper').write_text(str(p.pid))\n"
    flags = ("--gpu", "L40S=4")
    await site.start_agent(*flags)
    version = await site.version(HEALTH + helper + note + STEADY)
    message = await site.create(version, 2, gpu="L40S", gpus_per_instance=1)
    before = await site.running(version, 2)
    helpers = [int((site.data / "instances" / each.id / "shared" / "helper").read_text()) for each in before]
    await site.kill_agent()
    await eventually(lambda: not any(alive(each.pid) for each in before))
    # Both messages arrive while no agent runs. One is a copy of a message that the dead agent had taken.
    await site.send(message)
    more = await site.create(version, gpu="L40S", gpus_per_instance=1)
    await site.start_agent(*flags)
    pids = {each.pid for each in before}
    after = await site.until(
        version,
        lambda them: sum(is_running(each) and each.pid not in pids for each in them) == 3,
    )
    assert {each.id for each in after} == {each.id for each in before} | set(more.instance_ids)
    assert not any(alive(pid) for pid in helpers)
    kept = {each.id: each.visible_devices for each in after}
    assert all(kept[each.id] == each.visible_devices for each in before)
    assert len(set(kept.values())) == 3
    await site.free("L40S", 1)


async def test_an_agent_killed_again_and_again_neither_loses_nor_doubles_an_instance(site: Site) -> None:
    version = await site.version(STEADY)
    wanted: set[str] = set()
    ended: set[str] = set()
    await site.start_agent()
    for _ in range(4):
        message = await site.create(version, 3)
        ending, *kept = message.instance_ids
        await site.end(version, ending, grace=5)
        wanted |= set(kept)
        ended.add(ending)
        await site.kill_agent()
        await site.send(message)
        await site.start_agent()
    await site.until(version, lambda them: {each.id for each in them if is_running(each)} == wanted)
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


async def test_a_consumer_that_was_deleted_is_made_again(site: Site) -> None:
    await site.start_agent()
    version = await site.version(STEADY)
    await site.create(version)
    await site.running(version)
    await site.client.jetstream().delete_consumer(CREATE_STREAM, f"{CREATE_STREAM}-local")
    await site.create(version)
    await site.running(version, 2)


async def test_instances_ended_while_the_agent_was_dead_are_removed(site: Site) -> None:
    await site.start_agent()
    version = await site.version(STEADY)
    message = await site.create(version, 3)
    ended, closed, removed = message.instance_ids
    await site.running(version, 3)
    await site.kill_agent()
    await site.end(version, ended)
    by_id = {each.id: each for each in site.of(version)}
    lost = by_id[closed].changed(time.time(), state=FAILED, reason="its cluster was silent")
    await site.instances.put(lost.key, lost)
    await site.instances.delete(by_id[removed].key)
    orphan = site.data / "instances" / new_id()
    orphan.mkdir()
    await site.start_agent()
    await site.states(version, COMPLETED, FAILED)
    (failed,) = [each for each in site.of(version) if each.state is FAILED]
    assert failed.reason == "its cluster was silent"
    await eventually(lambda: not (site.data / "instances" / removed).exists())
    assert not orphan.exists()
    await site.free("CPU", 256)


async def test_records_without_a_request_are_closed(site: Site) -> None:
    version = await site.version(STEADY)
    message = site.order(version, 2)
    await site.announce(message)
    waiting, lost = site.of(version)
    await site.instances.put(lost.key, lost.changed(time.time(), state=RUNNING, pid=1))
    await site.start_agent()
    await site.states(version, PENDING, FAILED)
    reasons = {each.id: each.reason for each in site.of(version)}
    assert reasons == {waiting.id: None, lost.id: "lost: the agent of cluster local knows nothing of it"}


async def test_instances_of_a_deleted_version_end(site: Site) -> None:
    await site.start_agent()
    version, other = await site.version(STEADY), await site.version(STEADY)
    await site.create(version)
    await site.create(other)
    (instance,) = await site.running(version)
    await site.running(other)
    await site.versions.delete(version.id)
    (over,) = await site.states(version, COMPLETED)
    assert over.reason == "its version was deleted"
    assert not alive(instance.pid)
    assert is_running(site.of(other)[0])


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


async def test_a_worker_that_does_not_leave_is_killed_with_its_group_after_the_grace_period(
    site: Site,
) -> None:
    await site.start_agent()
    helper = "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    note = "(shared / 'helper').write_text(str(p.pid))\n"
    version = await site.version(STUBBORN.replace("become_ready()\n", f"{helper}{note}become_ready()\n", 1))
    await site.create(version, 2)
    first, second = await site.running(version, 2)
    helpers = [
        int((site.data / "instances" / each.id / "shared" / "helper").read_text()) for each in (first, second)
    ]
    await site.end(version, first.id, grace=0.5)
    await site.states(version, COMPLETED, RUNNING)
    assert not alive(first.pid)
    # A second termination may shorten the grace time of the first.
    await site.end(version, second.id, grace=300)
    await site.states(version, COMPLETED, TERMINATING)
    assert alive(second.pid)
    await site.end(version, second.id, grace=0)
    await site.states(version, COMPLETED, COMPLETED)
    assert not any(alive(pid) for pid in (second.pid, *helpers))


async def test_without_a_gateway_the_reason_names_it_and_the_instance_starts_later(site: Site) -> None:
    site.tokens.working = False
    await site.start_agent()
    version = await site.version(STEADY)
    await site.create(version)
    (waiting,) = await site.until(version, lambda them: "HTTP 503" in (them[0].reason or ""))
    assert waiting.state is STARTING
    assert waiting.reason is not None
    assert waiting.reason.startswith("waiting: ")
    site.tokens.working = True
    (instance,) = await site.running(version)
    assert (instance.restarts, instance.reason) == (0, None)


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
    await site.end(version, before.id)
    await site.states(version, COMPLETED, RUNNING)
