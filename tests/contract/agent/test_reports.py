"""Reports of instances' states: at once, in order, until taken, and the end once with its true cause."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import struct
import time

from tests.support.peers.icms import Call
from tests.support.platform.agent_site import HEALTH, STEADY, Ordered, Site, alive, own_children
from tests.support.waiting import eventually

SLOW_TO_DIE = (
    HEALTH.replace("def leave(*_):\n", "def leave(*_):\n    time.sleep(2)\n") + STEADY[len(HEALTH) :]
)


def ends(site: Site, ordered: Ordered) -> list[Call]:
    """Return the calls that report an instance's end."""
    calls = site.icms.of_kind("report", ordered.id)
    return [call for call in calls if call.body["instanceState"] == "terminated"]


async def test_an_end_is_reported_once_and_with_its_true_cause(site: Site) -> None:
    """protocol.md, section 6.9: NVIDIA's agent reports each end twice."""
    await site.start_agent()
    asked_for, failing = (
        await site.create(site.version()),
        await site.create(site.version("import sys\nsys.exit('broken')\n")),
    )
    await site.running(asked_for)
    await site.end(asked_for)
    await site.terminated(asked_for)
    await site.terminated(failing)
    await site.beats(4)
    (user,), (service,) = ends(site, asked_for), ends(site, failing)
    assert user.body["status"] == "instance-terminated-by-user"
    assert "terminationCause" not in user.body
    assert service.body["terminationCause"] == service.body["systemFailure"] == "container-restart-loop"


async def test_gpus_count_as_held_until_nothing_runs_any_more(site: Site) -> None:
    """protocol.md, section 6.9: report an end when nothing runs any more."""
    await site.start_agent("--gpu", "H100=1")
    ordered = await site.create(site.version(SLOW_TO_DIE), gpu="H100", gpus=1)
    (seen,) = await site.running(ordered)
    await site.end(ordered)
    await site.state(ordered, "shutting-down")
    await site.beats(2)
    assert alive(seen.pid)
    assert (site.usage("H100") or {})["available"] == 0
    await site.terminated(ordered)
    assert not alive(seen.pid)
    await site.free("H100", 1)


async def test_changes_are_reported_at_once(site: Site) -> None:
    """protocol.md, section 6.1: no tick is waited for."""
    await site.start_agent()
    ordered = await site.create(site.version())
    (seen,) = await site.running(ordered)
    (call,) = [
        call
        for call in site.icms.of_kind("report", ordered.id)
        if call.body["instanceState"] == "running" and call.body["details"]["pid"] == seen.pid
    ][:1]
    assert call.at - seen.readyAt < 5.0


async def test_no_report_overtakes_another_however_often_the_control_plane_fails(site: Site) -> None:
    """protocol.md, section 6.9."""
    chance = random.Random(7)
    site.time_scale = 0.01
    site.icms.judge = lambda call: 503 if call.kind == "report" and chance.random() < 0.5 else None
    await site.start_agent()
    orders = await site.create_many(site.version(), 4)
    await site.running(*orders)
    await site.end(*orders)
    for ordered in orders:
        await site.terminated(ordered)
        states = site.icms.states(ordered.id)
        order = ["starting", "running", "shutting-down", "terminated"]
        assert states == [each for each in order if each in states]


async def test_reports_are_repeated_now_and_then(site: Site) -> None:
    """protocol.md, section 6.5: every 5 min, here 1.5 s."""
    site.time_scale = 0.005
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)

    def same() -> bool:
        reports = site.icms.reports[ordered.id]
        return sum(each == reports[-1] for each in reports) >= 3

    await eventually(same)


async def test_412_deletes_the_instance_and_says_so(site: Site) -> None:
    """protocol.md, section 6.5."""
    await site.start_agent()
    ordered = await site.create(site.version())
    (seen,) = await site.running(ordered)
    site.icms.requests[ordered.request_id]["closed"] = True
    # Something changes, so something is reported.
    os.kill(seen.pid, signal.SIGKILL)
    over = await site.terminated(ordered)
    assert over.cause == "instance-terminated-precondition-failure"
    assert site.living() == 0
    await site.beats(4)
    assert len(ends(site, ordered)) == 1


async def test_an_end_is_reported_until_it_is_taken_or_refused_for_good(site: Site) -> None:
    """protocol.md, sections 6.5 and 6.9: which answers to the report of an end are final."""
    final, passing = (404, 409, 412, 500), (502, 503, 429, 401)
    await site.start_agent()
    function = site.version()
    orders = {status: await site.create(function) for status in (*final, *passing)}
    await site.running(*orders.values())

    def judge(call: Call) -> int | None:
        found = [status for status, ordered in orders.items() if ordered.id in call.path]
        return found[0] if call.body.get("instanceState") == "terminated" else None

    site.icms.judge = judge
    await site.end(*orders.values())

    def all_answered() -> bool:
        counts = {status: len(ends(site, ordered)) for status, ordered in orders.items()}
        return all(counts[status] >= (1 if status in final else 2) for status in counts)

    await eventually(all_answered)
    site.icms.judge = lambda _: None
    for status in passing:
        await site.terminated(orders[status])
    await site.beats(4)
    assert {status: len(ends(site, orders[status])) for status in final} == dict.fromkeys(final, 1)


async def test_a_report_answered_404_ends_nothing(site: Site) -> None:
    """protocol.md, section 6.5: only 412 does; a proxy without a gateway answers 404, for minutes."""
    site.time_scale = 0.001
    await site.start_agent()
    site.icms.judge = lambda call: 404 if call.body.get("instanceState") in ("starting", "running") else None
    ordered = await site.create(site.version())
    await eventually(lambda: len(site.icms.of_kind("report", ordered.id)) >= 10)
    assert own_children(site.agent.pid)
    site.icms.judge = lambda _: None
    await site.running(ordered)


async def test_both_instances_of_a_request_are_reported_for_as_long_as_they_run(site: Site) -> None:
    """protocol.md, section 6.9: NVIDIA's agent forgets the second one."""
    site.time_scale = 0.005
    await site.start_agent()
    ordered = await site.create(site.version(), instanceCount=2)
    first, second = f"0-sr-{ordered.request_id}", f"1-sr-{ordered.request_id}"
    await site.running(ordered)
    await eventually(lambda: site.icms.last(second).get("instanceState") == "running")
    (acknowledgement,) = site.icms.of_kind("acknowledge")
    assert acknowledgement.body["instanceCount"] == 2
    count = len(site.icms.reports[second])
    await eventually(lambda: len(site.icms.reports[second]) >= count + 2)
    await site.icms.terminate(site.icms.calls[0].headers["X-Nv-Cluster-Id"], ordered.request_id, first)
    await eventually(lambda: site.icms.last(first)["instanceState"] == "terminated")
    site.icms.requests[ordered.request_id]["closed"] = False
    count = len(site.icms.reports[second])
    await eventually(lambda: len(site.icms.reports[second]) > count)
    assert site.icms.last(second)["instanceState"] == "running"


async def test_requests_that_an_ended_instance_held_are_in_its_last_report(site: Site) -> None:
    """protocol.md, section 6.5, and protocol.md, section 5.7."""
    await site.start_agent()
    function = site.version()
    ordered = await site.create(function)
    await site.running(ordered)
    stream = f"rq_local_{function.id}"
    subject = f"$JS.ACK.{stream}.{stream}_workers.1.22.7.1700000000000000000.0"
    other = "$JS.ACK.other.other_workers.1.2.3.4.5"
    journal = site.home(ordered) / "shared" / "inflight"
    await asyncio.to_thread(journal.write_bytes, written(ordered.id, subject, other))
    await site.end(ordered)
    over = await site.terminated(ordered)
    assert over.report["heldRequests"] == [subject]


def written(instance_id: str, *subjects: str) -> bytes:
    """Return a worker's journal, written from protocol.md, section 5.7."""
    entry, header = 512, struct.Struct("<8sIIdH")
    data = bytearray((len(subjects) + 1) * entry)
    name = instance_id.encode()
    header.pack_into(data, 0, b"NVCFJ1\0\0", 1, len(subjects), 0.0, len(name))
    data[header.size : header.size + len(name)] = name
    for number, subject in enumerate(subjects, 1):
        fields = struct.Struct("<Hdd")
        fields.pack_into(data, number * entry, len(subject), time.time(), 300.0)
        start = number * entry + fields.size
        data[start : start + len(subject)] = subject.encode()
    return bytes(data)
