"""Deaths of the agent, of the broker and of the control plane, at each step (protocol.md, section 6.9)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.peers.icms import CREATION, TERMINATION
from tests.support.platform.agent_site import CLUSTER, HEALTH, STEADY, Ordered, Site, alive, own_children
from tests.support.waiting import WAIT, eventually


def read(path: Path) -> int:
    return int(path.read_text())


async def test_a_killed_agent_leaves_no_process_and_its_successor_takes_over(site: Site) -> None:
    """protocol.md, section 6.9: know a request again after a restart."""
    helper = "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    note = "(shared / 'helper').write_text(str(p.pid))\n"
    flags = ("--gpu", "L40S=4")
    await site.start_agent(*flags)
    function = site.version(HEALTH + helper + note + STEADY)
    orders = await site.create_many(function, 2, gpu="L40S", gpus=1)
    before = await site.running(*orders)
    helpers = [read(site.home(each) / "shared" / "helper") for each in orders]
    await site.kill_agent()
    await eventually(lambda: not any(alive(each.pid) for each in before))
    # Both messages arrive while no agent runs. One is a copy of a message that the dead agent had taken.
    await site.send(orders[0])
    more = await site.create(function, gpu="L40S", gpus=1)
    await site.start_agent(*flags)
    old = {each.pid for each in before}
    after = [
        await site.until(each, lambda seen: seen.state == "running" and seen.pid not in old)
        for each in (*orders, more)
    ]
    assert not any(alive(pid) for pid in helpers)
    assert [each.visibleDevices for each in after[:2]] == [each.visibleDevices for each in before]
    assert len({each.visibleDevices for each in after}) == 3
    await site.free("L40S", 1)
    await site.settled(CREATION)
    # Ending the instances ends their helpers: nothing outlives the test.
    helpers = [read(site.home(each) / "shared" / "helper") for each in (*orders, more)]
    await site.end(*orders, more)
    for each in (*orders, more):
        await site.terminated(each)
    assert not any(alive(pid) for pid in helpers)


@pytest.mark.timeout(300)
async def test_an_agent_killed_again_and_again_neither_loses_nor_doubles_an_instance(site: Site) -> None:
    """protocol.md, section 6.9: know a request again after a restart."""
    function = site.version(STEADY)
    wanted: list[Ordered] = []
    ended: list[Ordered] = []
    await site.start_agent()
    for _ in range(4):
        ending, *kept = await site.create_many(function, 3)
        await site.end(ending)
        wanted += kept
        ended.append(ending)
        await site.kill_agent()
        for each in (ending, *kept):
            await site.send(each)
        await site.start_agent()
    # What a dead agent had in its hands comes again after its ack wait; a control plane orders again.
    for each in (*ended, *wanted):
        await site.send(each)
    await site.end(*ended)
    for each in ended:
        await site.terminated(each)
    await site.running(*wanted)
    folders = site.data / "instances"
    await eventually(lambda: {each.name for each in folders.iterdir()} == {each.id for each in wanted})
    pids = {site.seen(each).pid for each in wanted}
    await eventually(lambda: own_children(site.agent.pid) == {site.seen(each).pid for each in wanted})
    assert len(pids) == len(wanted)


@pytest.mark.parametrize("kind", ["acknowledge", "report"])
async def test_an_agent_killed_while_the_control_plane_holds_its_call_finishes_the_request(
    site: Site, kind: str
) -> None:
    """protocol.md, section 6.9: neither the acknowledgement nor the report is lost."""
    await site.start_agent()
    site.icms.judge = lambda call: 503 if call.kind == kind else None
    ordered = await site.create(site.version(STEADY))
    await eventually(lambda: site.icms.of_kind(kind, ordered.request_id))
    await site.kill_agent()
    site.icms.judge = lambda _: None
    await site.start_agent()
    await site.running(ordered)
    if kind == "acknowledge":
        # The broker gives the message out again when its ack wait is over; this is a copy.
        await site.send(ordered)
        await site.settled(CREATION, 1)
        assert len(own_children(site.agent.pid)) == 1


async def test_a_request_ended_while_the_agent_was_dead_ends(site: Site) -> None:
    """protocol.md, section 6.4."""
    await site.start_agent()
    ordered = await site.create(site.version(STEADY))
    await site.running(ordered)
    await site.kill_agent()
    await site.end(ordered)
    await site.start_agent()
    await site.terminated(ordered)
    await site.settled(TERMINATION)
    await eventually(lambda: not site.home(ordered).exists())


async def test_an_agent_killed_while_an_instance_ends_reports_the_end_once_it_is_back(site: Site) -> None:
    """protocol.md, section 6.9: report an instance until the control plane has heard of its end."""
    await site.start_agent()
    ordered = await site.create(site.version(STEADY))
    await site.running(ordered)
    site.icms.judge = lambda call: 503 if call.body.get("instanceState") == "terminated" else None
    await site.end(ordered)
    await eventually(lambda: any(call.status == 503 for call in site.icms.of_kind("report")))
    await site.kill_agent()
    site.icms.judge = lambda _: None
    await site.start_agent()
    over = await site.terminated(ordered)
    assert over.report["status"] == "instance-terminated-by-user"


async def test_sigterm_stops_workers_gracefully_and_keeps_their_ids(site: Site) -> None:
    """protocol.md, section 6.5: the last heartbeat says that the agent drains [ext]."""
    agent = await site.start_agent()
    orders = await site.create_many(site.version(STEADY), 2)
    before = await site.running(*orders)
    agent.terminate()
    assert await asyncio.wait_for(agent.wait(), WAIT) == 0
    for ordered, each in zip(orders, before, strict=True):
        assert not alive(each.pid)
        assert (site.home(ordered) / "shared" / "left").read_text() == "in order"
        stopped = await site.state(ordered, "starting")
        assert stopped.reason == "waiting: the agent was stopped"
    assert site.icms.of_kind("heartbeat")[-1].body["draining"] is True
    await site.start_agent()
    await site.running(*orders)
    assert site.icms.of_kind("heartbeat")[-1].body["draining"] is False


async def test_a_consumer_that_was_deleted_is_made_again(site: Site) -> None:
    """protocol.md, section 6.9: make the consumers again when they are missing."""
    await site.start_agent()
    function = site.version(STEADY)
    await site.running(await site.create(function))
    await site.icms.api(f"CONSUMER.DELETE.{CREATION}.{CREATION}-{CLUSTER}")
    await site.running(await site.create(function))


async def test_streams_that_were_lost_are_read_again_and_their_sequences_mean_nothing(site: Site) -> None:
    """protocol.md, section 6.9: a new message with the number of an old one is a new request."""
    await site.start_agent()
    function = site.version(STEADY)
    first = await site.create(function)
    await site.running(first)
    for stream in (CREATION, TERMINATION):
        await site.icms.api(f"STREAM.DELETE.{stream}")
    await site.icms.create_streams()
    second = await site.create(function)
    await site.running(first, second)
    await site.end(first)
    await site.terminated(first)


async def test_a_killed_broker_loses_nothing(site: Site) -> None:
    """protocol.md, section 6.9: connect again however long the broker was away."""
    await site.start_agent()
    function = site.version(STEADY)
    ordered = await site.create(function)
    (before,) = await site.running(ordered)
    site.icms.broker.kill()
    await eventually(lambda: not site.icms.client.is_connected, "the broker is gone")
    await asyncio.to_thread(site.icms.broker.start)
    await eventually(lambda: site.icms.client.is_connected)
    more = await site.create(function)
    await site.running(more)
    assert site.seen(ordered).pid == before.pid
    await site.end(ordered)
    await site.terminated(ordered)


async def test_an_agent_starts_before_the_broker_and_the_control_plane(site: Site) -> None:
    """protocol.md, section 6.5: retried with growing pauses."""
    await site.icms.stop_http()
    site.icms.broker.kill()
    agent = await site.launch()
    await eventually(lambda: "cannot register the cluster, trying again" in site.log())
    await site.icms.start_http()
    await eventually(lambda: "cannot reach the broker" in site.log())
    await asyncio.to_thread(site.icms.broker.start)
    await site.ready(agent)
    await site.running(await site.create(site.version(STEADY)))


async def test_a_restarted_agent_runs_its_instances_while_the_control_plane_is_away(site: Site) -> None:
    """protocol.md, section 6.9: nothing accepted is lost."""
    await site.start_agent()
    ordered = await site.create(site.version(STEADY))
    await site.running(ordered)
    await site.kill_agent()
    await site.icms.stop_http()
    agent = await site.launch()
    await eventually(lambda: own_children(agent.pid))
    calls = len(site.icms.calls)
    await site.icms.start_http()
    await site.ready(agent)
    await eventually(lambda: any(call.kind == "report" for call in site.icms.calls[calls:]))
    assert site.icms.calls[calls].kind == "register"


async def test_the_control_plane_away_for_a_while_hears_of_everything(site: Site) -> None:
    """protocol.md, section 6.9: drop nothing that was not answered."""
    await site.start_agent()
    function = site.version(STEADY)
    running, ending = await site.create_many(function, 2)
    await site.running(running, ending)
    await site.icms.stop_http()
    await site.end(ending)
    late = await site.create(function)
    await site.settled(TERMINATION)
    await eventually(lambda: f"0-sr-{late.request_id}" in site.log())
    assert await site.icms.waiting(CREATION) == 1
    await site.icms.start_http()
    await site.terminated(ending)
    await site.running(late)
    await site.settled(CREATION)
    assert site.seen(running).state == "running"
