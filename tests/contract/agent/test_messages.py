"""Creation and termination messages: unreadable, late, in the wrong order, without room."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from nats.aio.msg import Msg

from tests.support.peers.icms import CREATION, TERMINATION
from tests.support.platform.agent_site import CLUSTER, Ordered, Site
from tests.support.waiting import eventually

SUBJECT = f"Create.NVCA.Function.{CLUSTER}.CPU.process"


async def answers(site: Site, stream: str = CREATION) -> list[bytes]:
    """Return a list that fills with the agent's answers to the messages of a stream."""
    found: list[bytes] = []

    async def note(message: Msg) -> None:
        found.append(message.data)

    await site.icms.client.subscribe(f"$JS.ACK.{stream}.>", cb=note)
    await site.icms.client.flush()
    return found


async def test_messages_that_nobody_can_read_are_removed_and_the_next_one_runs(site: Site) -> None:
    """protocol.md, section 6.2: NVIDIA's agent gets them again for 96 h."""
    bodies = (b"{broken", b"", b"[]", b'"text"', b"{}", b"\xff\xfe", b'{"requestId": "x"}', b"[" * 100_000)
    seen = await answers(site)
    await site.start_agent()
    for body in bodies:
        await site.icms.publish(SUBJECT, body)
        await site.icms.publish(f"Terminate.NVCA.{CLUSTER}", body)
    await site.running(await site.create(site.version()))
    await site.settled(CREATION)
    await site.settled(TERMINATION)
    assert seen.count(b"+TERM") == len(bodies)
    assert site.log().count("is dropped") == 2 * len(bodies)


async def test_what_is_no_request_id_never_becomes_a_file(site: Site) -> None:
    """protocol.md, section 6.3."""
    await site.start_agent()
    for wrong in ("../../escape", "a/b", "x" * 101, "", "a b", ".", "-a", "a\u0000b", 5, None, ["a"]):
        await site.icms.publish(SUBJECT, {**site.order(site.version()).message, "requestId": wrong})
    await site.settled(CREATION)
    assert not [path for path in (site.data / "requests").iterdir() if path.suffix == ".json"]
    assert not site.icms.of_kind("acknowledge")


async def test_a_termination_of_an_unknown_id_is_reported_terminated(site: Site) -> None:
    """protocol.md, section 6.4."""
    await site.start_agent()
    ordered = site.order(site.version())
    site.icms.requests[ordered.request_id] = {}
    await site.end(ordered)
    over = await site.terminated(ordered)
    assert over.report["status"] == "instance-terminated-by-user"
    await site.settled(TERMINATION)
    assert len(site.icms.reports[ordered.id]) == 1


async def test_a_termination_that_overtakes_its_creation_is_remembered(site: Site) -> None:
    """protocol.md, section 6.4; also over a restart."""
    await site.start_agent()
    first, second = site.order(site.version()), site.order(site.version())
    for each in (first, second):
        site.icms.requests[each.request_id] = {}
        await site.end(each)
    await site.settled(TERMINATION)
    await site.send(first)
    await site.settled(CREATION)
    await site.kill_agent()
    await site.start_agent()
    await site.send(second)
    await site.settled(CREATION)
    assert site.living() == 0
    assert site.icms.states(first.id) == site.icms.states(second.id) == ["terminated"]


async def test_a_termination_names_instances_of_which_some_are_unknown(site: Site) -> None:
    """protocol.md, section 6.4."""
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)
    unknown = f"7-sr-{ordered.request_id}"
    await site.icms.terminate(CLUSTER, ordered.request_id, unknown, ordered.id)
    await site.terminated(ordered)
    await eventually(lambda: site.icms.last(unknown).get("instanceState") == "terminated")


async def test_copies_of_a_termination_end_an_instance_once(site: Site) -> None:
    """protocol.md, section 6.4."""
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)
    for _ in range(3):
        await site.end(ordered)
    await site.terminated(ordered)
    await site.settled(TERMINATION)
    ends = [each for each in site.icms.reports[ordered.id] if each["instanceState"] == "terminated"]
    assert len(ends) == 1


async def test_a_copy_that_comes_after_the_end_makes_nothing(site: Site) -> None:
    """protocol.md, section 6.3."""
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)
    await site.end(ordered)
    await site.terminated(ordered)
    await site.send(ordered)
    await site.settled(CREATION)
    assert site.living() == 0
    assert site.seen(ordered).state == "terminated"


async def test_an_expired_message_is_dropped(site: Site) -> None:
    """protocol.md, section 6.3 [ext]."""
    await site.start_agent()
    late = await site.create(site.version(), expiresAt=time.time() - 1)
    await site.settled(CREATION)
    assert not site.icms.of_kind("acknowledge", late.request_id)
    assert late.id not in site.icms.reports


NEVER: list[tuple[dict[str, Any], str]] = [
    ({"type_name": "NCP.GPU.H100_4x"}, "no instance type NCP.GPU.H100_4x of H100"),
    ({"gpu": "A100"}, "no GPU A100"),
    ({"gpu": "CPU"}, "no instance type NCP.GPU.H100_1x of CPU"),
    ({"launch": {"process": None, "containerImage": "image"}}, "container image"),
    ({"launch": {"environment": "%%%"}}, "not base64"),
    ({"instanceCount": 3}, "3 H100 wanted, this cluster has 2"),
]


async def test_what_can_never_run_is_acknowledged_and_reported_with_the_reason(site: Site) -> None:
    """protocol.md, section 6.6: NVIDIA's agent says instance-not-found, without a text."""
    await site.start_agent("--gpu", "H100=2")
    known = {"gpu": "H100", "type_name": "NCP.GPU.H100_1x", "type_value": "NCP.GPU.H100", "gpus": 1}
    for changes, words in NEVER:
        ordered = await site.create(site.version(), **{**known, **changes})
        over = await site.terminated(ordered)
        assert site.icms.requests[ordered.request_id]["acknowledged"]["status"] == "pending-fulfillment"
        assert (over.cause, over.category) == ("instance-terminated-terminal-error", "unsupported")
        assert words in over.report["healthInfo"]["errorLog"]
    await site.settled(CREATION)
    assert (site.usage("H100") or {})["available"] == 2


NO_PROCESS: list[dict[str, Any]] = [
    {"environment": {"A": "x\0y"}},
    {"environment": {"A=B": "x"}},
    {"environment": {"": "x"}},
    {"environment": {"A": "x" * 4_000_000}},
    {"file": "/x\0y"},
    {"python": "/x\0y/python"},
    {"workingDirectory": "/does/not/exist"},
    {"workingDirectory": "/x\0y"},
    {"file": "/" + "x" * 4000},
]


async def test_what_no_process_can_be_made_of_fails_and_the_agent_goes_on(site: Site) -> None:
    """protocol.md, section 6.6."""
    await site.start_agent()
    function = site.version()
    orders = [
        await site.create(function, launch={"process": {**function.process, **wrong}}) for wrong in NO_PROCESS
    ]
    after = await site.create(function, variables={"FUNCTION_NAME": "x/../" + "y" * 3000})
    for ordered, wrong in zip(orders, NO_PROCESS, strict=True):
        over = await site.terminated(ordered)
        assert over.report["status"] == "instance-terminated-by-service", str(wrong)[:200]
    await site.running(after)
    await site.settled(CREATION)


async def test_a_task_is_refused_under_its_own_id_and_action(site: Site) -> None:
    """protocol.md, section 6.3: the process backend runs no images."""
    await site.start_agent()
    ordered = site.order(
        site.version(),
        action="RequestSpotInstancesForTask",
        functionDetails=None,
        taskDetails={"taskId": "t", "taskType": "CONTAINER"},
        launch={"process": None, "containerImage": "image", "maxRuntimeDuration": "PT1H"},
    )
    await site.send(ordered)
    await eventually(lambda: site.icms.last(ordered.id).get("instanceState") == "terminated")
    assert site.icms.last(ordered.id)["action"] == "RequestSpotInstancesForTask"


async def test_over_capacity_a_message_goes_back_and_runs_when_there_is_room(site: Site) -> None:
    """protocol.md, section 6.2: never a failure."""
    seen = await answers(site)
    await site.start_agent("--cpu-slots", "1")
    function = site.version()
    first = await site.create(function)
    await site.running(first)
    second = await site.create(function)
    await eventually(lambda: any(each.startswith(b"-NAK") for each in seen))
    assert await site.icms.waiting(CREATION) == 1
    assert not site.icms.of_kind("acknowledge", second.request_id)
    await site.end(first)
    await site.running(second)
    assert site.icms.states(second.id)[-1] == "running"
    await site.settled(CREATION)


async def test_the_pauses_of_a_message_without_room_grow(site: Site) -> None:
    """protocol.md, section 6.2."""
    seen = await answers(site)
    await site.start_agent("--cpu-slots", "1")
    function = site.version()
    await site.running(await site.create(function))
    await site.create(function)
    await eventually(lambda: sum(each.startswith(b"-NAK") for each in seen) >= 6)
    delays = [json.loads(each[4:])["delay"] for each in seen if each.startswith(b"-NAK")]
    assert max(delays) > 2 * delays[0] > 0


async def test_one_gpu_without_room_holds_up_no_other(site: Site) -> None:
    """protocol.md, section 6.2: nothing is taken for that GPU."""
    await site.start_agent("--gpu", "H100=1", "--gpu", "L40S=1")
    function = site.version()
    full = await site.create(function, gpu="H100", gpus=1)
    await site.running(full)
    waiting = await site.create(function, gpu="H100", gpus=1)
    other = await site.create(function, gpu="L40S", gpus=1)
    await site.running(other)
    assert waiting.id not in site.icms.reports


async def test_an_order_without_room_is_dropped_when_it_expires(site: Site) -> None:
    """protocol.md, section 6.3 [ext]."""
    await site.start_agent("--cpu-slots", "1")
    function = site.version()
    await site.running(await site.create(function))
    late = await site.create(function, expiresAt=time.time() + 1)
    await site.settled(CREATION)
    assert not site.icms.of_kind("acknowledge", late.request_id)
    assert late.id not in site.icms.reports


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
async def test_orders_of_another_clock_expire_no_earlier_and_no_later(site: Site, ahead: float) -> None:
    """protocol.md, section 6.3 [ext]: only the time between the two moments counts."""
    await site.start_agent("--cpu-slots", "1")
    function, now = site.version(), time.time() + ahead
    await site.running(await site.create(function, issuedAt=now, expiresAt=now + 60))
    now = time.time() + ahead
    late = await site.create(function, issuedAt=now, expiresAt=now + 1)
    await site.settled(CREATION)
    assert late.id not in site.icms.reports


async def test_terminations_pass_while_creations_wait(site: Site) -> None:
    """protocol.md, section 6.2."""
    await site.start_agent("--cpu-slots", "2")
    function = site.version()
    first = await site.create(function)
    await site.running(first)
    site.icms.judge = lambda call: 503 if call.kind == "acknowledge" else None
    unanswered, without_room = await site.create(function), await site.create(function)
    await eventually(lambda: site.icms.of_kind("acknowledge", unanswered.request_id))
    await site.end(first)
    await site.terminated(first)
    await site.settled(TERMINATION)
    site.icms.judge = lambda _: None
    await site.running(unanswered, without_room)


async def test_an_old_message_names_its_type_in_instance_type(site: Site) -> None:
    """protocol.md, section 6.3."""
    await site.start_agent()
    ordered = site.order(site.version(), instanceType="process")
    message = {name: each for name, each in ordered.message.items() if name != "instanceTypeName"}
    await site.send(Ordered(message))
    await site.running(ordered)


async def test_many_messages_at_once_all_run(site: Site) -> None:
    """protocol.md, section 6.2: batches of 10."""
    orders = [site.order(site.version("import time\ntime.sleep(600)\n")) for _ in range(25)]
    await asyncio.gather(*(site.send(each) for each in orders))
    await site.start_agent()
    for each in orders:
        await site.state(each, "starting")
    await site.settled(CREATION)
    await site.free("CPU", 256 - 25)
