"""The cluster as a whole: registration, heartbeats, maintenance, reconciliation, identity."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from typing import Any

import pytest

from tests.support.peers.icms import CREATION, TERMINATION
from tests.support.platform.agent_site import CLUSTER, STEADY, Ordered, Site, alive
from tests.support.waiting import WAIT, eventually


def known(ordered: Ordered, state: str, instance_id: str = "") -> dict[str, str]:
    """Return an entry of the control plane's list."""
    return {
        "instanceId": instance_id or ordered.id,
        "requestId": ordered.request_id,
        "instanceState": state,
    }


async def test_self_destruct_ends_everything_reports_each_once_and_falls_silent(site: Site) -> None:
    """protocol.md, section 6.5."""
    agent = await site.start_agent()
    orders = await site.create_many(site.version(), 2)
    await site.running(*orders)
    site.icms.action = "SELF_DESTRUCT"
    for ordered in orders:
        over = await site.terminated(ordered)
        assert over.cause == "instance-terminated-service-maintenance"
        assert over.report["status"] == "instance-terminated-by-service"
    assert site.living() == 0
    await eventually(lambda: "the agent is silent" in site.log())
    count = len(site.icms.calls)
    later = await site.create(site.version())
    await asyncio.sleep(1.5)
    assert len(site.icms.calls) == count
    assert await site.icms.waiting(CREATION) == 1
    assert later.id not in site.icms.reports
    ends = [each for each in site.icms.of_kind("report") if each.body["instanceState"] == "terminated"]
    assert len(ends) == 2
    agent.terminate()
    assert await asyncio.wait_for(agent.wait(), WAIT) == 0


@pytest.mark.parametrize(
    ("mode", "status"), [("CordonOnly", "CORDON"), ("CordonAndDrain", "CORDON_AND_DRAIN")]
)
async def test_while_cordoned_creations_wait_and_terminations_pass(
    site: Site, mode: str, status: str
) -> None:
    """protocol.md, section 6.5 [ext]: the answer to a heartbeat says what an administrator has asked."""
    await site.start_agent()
    function = site.version()
    ordered = await site.create(function)
    await site.running(ordered)
    answer: dict[str, Any] = {"action": "ACCEPTED", "maintenance": mode}
    site.icms.heartbeat_answer = answer
    await eventually(lambda: site.icms.of_kind("register")[-1].body["status"] == status)
    await eventually(lambda: site.icms.of_kind("heartbeat")[-1].body["maintenanceMode"] == mode)
    waiting = await site.create(function)
    await site.end(ordered)
    await site.terminated(ordered)
    await site.settled(TERMINATION)
    assert not site.icms.of_kind("acknowledge", waiting.request_id)
    answer["maintenance"] = "None"
    await site.running(waiting)
    assert site.icms.of_kind("register")[-1].body["status"] == "READY"


async def test_an_answer_that_nobody_knows_asks_for_nothing(site: Site) -> None:
    """protocol.md, section 6.5."""
    answers: list[dict[str, Any]] = [{}, {"action": "DANCE"}, {"action": 5}, {"maintenance": "Odd"}]
    site.icms.heartbeat_answer = answers[0]
    await site.start_agent()
    for answer in answers:
        site.icms.heartbeat_answer = answer
        await site.beats(2)
        await site.running(await site.create(site.version()))


async def test_capacity_that_changed_is_told_at_once(site: Site) -> None:
    """protocol.md, section 6.5."""
    await site.start_agent("--heartbeat", "600")
    ordered = await site.create(site.version())
    await site.free("CPU", 255)
    await site.running(ordered)
    await site.end(ordered)
    await site.free("CPU", 256)


async def test_the_registration_is_repeated(site: Site) -> None:
    """protocol.md, section 6.7: hourly, here every second."""
    site.time_scale = 0.0003
    await site.start_agent()
    await eventually(lambda: len(site.icms.of_kind("register")) >= 3)


@pytest.mark.parametrize("status", [401, 403, 404, 409])
async def test_an_agent_that_is_refused_says_why_and_ends(site: Site, status: int) -> None:
    """protocol.md, section 6.5."""
    site.icms.judge = lambda _: status
    agent = await site.launch()
    assert await asyncio.wait_for(agent.wait(), WAIT) == 1
    assert len(site.icms.of_kind("register")) >= 3, "a replica may not know the cluster yet"
    last = site.log().splitlines()[-1]
    assert f"HTTP {status}" in last
    assert "check --cluster-id" in last
    assert "Traceback" not in site.log()


async def test_a_refusal_that_passes_ends_nothing(site: Site) -> None:
    """protocol.md, section 6.5: a gateway whose mirror is not filled yet refuses everybody."""
    statuses = itertools.cycle((401, 403, 404))
    site.icms.judge = lambda _: next(statuses)
    agent = await site.launch()
    await eventually(lambda: len(site.icms.of_kind("register")) >= 2)
    site.icms.judge = lambda _: None
    await site.ready(agent)
    ordered = await site.create(site.version())
    await site.running(ordered)
    # With instances it goes on for as long as it takes.
    await site.kill_agent()
    site.icms.judge = lambda call: next(statuses) if call.kind == "register" else None
    before = len(site.icms.of_kind("register"))
    agent = await site.launch()
    await eventually(lambda: len(site.icms.of_kind("register")) >= before + 12)
    assert agent.returncode is None
    site.icms.judge = lambda _: None
    await site.ready(agent)
    await site.running(ordered)


async def test_a_cluster_whose_broker_is_away_is_not_healthy(site: Site) -> None:
    """protocol.md, section 6.5: what is ordered would not arrive."""
    await site.start_agent()

    def status() -> str:
        return str(site.icms.of_kind("heartbeat")[-1].body["status"])

    await eventually(lambda: site.icms.of_kind("heartbeat") and status() == "healthy")
    site.icms.broker.kill()
    await eventually(lambda: status() == "unhealthy", "heartbeats say so", 20)
    await asyncio.to_thread(site.icms.broker.start)
    await eventually(lambda: status() == "healthy", "and when it is back", 30)


async def test_a_refused_login_at_the_broker_is_tried_again(site: Site) -> None:
    """protocol.md, section 6.2: the callout may be away."""
    known_before = site.callout.known
    site.callout.known = lambda *_: False
    agent = await site.launch()
    await eventually(lambda: len(site.callout.refused) >= 2)
    site.callout.known = known_before
    await site.ready(agent)
    await site.running(await site.create(site.version()))


async def test_a_connection_that_expires_is_made_again_with_the_token_of_then(site: Site) -> None:
    """protocol.md, section 6.2: made anew at each connect."""
    site.callout.lifetime = 2.0
    await site.start_agent()
    function = site.version()
    ordered = await site.create(function)
    await site.running(ordered)
    site.icms.add_cluster(CLUSTER, "second-token")
    (site.folder / f"{CLUSTER}.key").write_text("second-token")
    await eventually(lambda: (CLUSTER, "second-token") in site.callout.accepted)
    await eventually(lambda: len(site.callout.accepted) >= 4)
    more = await site.create(function)
    await site.running(more)
    await site.end(ordered)
    await site.terminated(ordered)
    assert site.agent.returncode is None


async def test_reconciliation_ends_what_the_control_plane_wants_ended(site: Site) -> None:
    """protocol.md, section 6.5."""
    site.time_scale = 0.005
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)
    site.icms.listed = [known(ordered, "shutting-down")]
    over = await site.terminated(ordered)
    assert over.cause == "instance-terminated-sync-action"
    assert site.living() == 0


async def test_reconciliation_reports_what_does_not_exist_here(site: Site) -> None:
    """protocol.md, section 6.5: NVIDIA's agent ignores an instance whose request it does not know."""
    ghosts = {state: site.order(site.version()) for state in ("running", "shutting-down")}
    site.icms.requests |= {ghost.request_id: {} for ghost in ghosts.values()}
    site.icms.listed = [known(ghost, state) for state, ghost in ghosts.items()]
    await site.start_agent()
    for ghost in ghosts.values():
        over = await site.terminated(ghost)
        assert over.cause == "instance-terminated-sync-action"
        assert over.report["status"] == "instance-terminated-by-service"


async def test_reconciliation_leaves_time_to_a_message_that_is_on_its_way(site: Site) -> None:
    """protocol.md, section 6.5: an order that is listed as starting and not here yet."""
    site.time_scale = 0.02
    ordered = site.order(site.version())
    site.icms.listed = [known(ordered, "starting")]
    await site.start_agent()
    await eventually(lambda: site.icms.of_kind("instances"))
    await site.send(ordered)
    await site.running(ordered)


async def test_reconciliation_reports_again_what_differs(site: Site) -> None:
    """protocol.md, section 6.5."""
    site.time_scale = 0.005
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)
    before = len(site.icms.reports[ordered.id])
    site.icms.listed = [known(ordered, "starting")]
    await eventually(lambda: len(site.icms.reports[ordered.id]) > before + 1)
    assert site.seen(ordered).state == "running"


async def test_an_agent_that_lost_its_folder_clears_what_it_ran(site: Site) -> None:
    """protocol.md, section 6.9."""
    await site.start_agent()
    ordered = await site.create(site.version())
    (seen,) = await site.running(ordered)
    await site.kill_agent()
    await eventually(lambda: not alive(seen.pid))
    await asyncio.to_thread(shutil.rmtree, site.data)
    await site.start_agent()
    over = await site.terminated(ordered)
    assert over.cause == "instance-terminated-sync-action"


async def test_a_restarted_agent_registers_and_reports_everything_again(site: Site) -> None:
    """protocol.md, section 6.9."""
    await site.start_agent()
    orders = await site.create_many(site.version(STEADY), 2)
    await site.running(*orders)
    await site.kill_agent()
    site.icms.calls.clear()
    await site.start_agent()
    await eventually(lambda: all(site.icms.of_kind("report", each.id) for each in orders))
    assert site.icms.calls[0].kind == "register"
    assert not site.icms.of_kind("acknowledge")
    await site.running(*orders)
    assert site.living() == 2


async def test_heartbeats_go_on_through_an_outage_and_reports_follow_at_once(site: Site) -> None:
    """protocol.md, section 6.5."""
    site.time_scale = 1.0
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)
    site.icms.judge = lambda _: 503
    await site.end(ordered)
    await eventually(lambda: any(call.status == 503 for call in site.icms.of_kind("report")))
    count = len(site.icms.of_kind("heartbeat"))
    await eventually(lambda: len(site.icms.of_kind("heartbeat")) >= count + 2)
    site.icms.judge = lambda _: None
    await site.terminated(ordered)
