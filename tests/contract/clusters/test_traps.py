"""What NVIDIA's agent was seen doing, one trap at a time (docs/reference/protocol.md, section 6.9)."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from nvcf_proto.models import InstanceState
from tests.support.peers.icms_agent import CREATION, TERMINATION, AgentPeer
from tests.support.platform.icms import ComputePlane
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

PENDING, STARTING, RUNNING = InstanceState.PENDING, InstanceState.STARTING, InstanceState.RUNNING
COMPLETED, FAILED = InstanceState.COMPLETED, InstanceState.FAILED
GONE = "instance-not-found"


async def running(plane: ComputePlane) -> tuple[AgentPeer, str, str]:
    """Return an agent, and the request and instance that it runs."""
    agent = await plane.cluster()
    request = await plane.running(agent, await plane.version())
    return agent, request, f"0-sr-{request}"


async def released(plane: ComputePlane, request: str) -> None:
    def free() -> bool:
        record = plane.record(request)
        return record is not None and record.released_at is not None

    await eventually(free, "its GPUs are free")


# --- 1: every end is reported twice


async def test_an_end_twice_first_the_reason(plane: ComputePlane) -> None:
    """6.9 (1): by-user while the pod still runs, instance-not-found when it is gone."""
    agent, request, instance = await running(plane)
    await plane.terminate(request)
    assert (await agent.ended_by_user(request, instance))[0] == 200
    record = await plane.state(request, COMPLETED)
    assert record.released_at is None, "the pod still holds its GPUs"
    assert (await agent.ended(request, instance, GONE))[0] == 200
    await released(plane, request)
    assert plane.record(request).reason == "scaled down"  # type: ignore[union-attr]


async def test_an_end_twice_first_that_it_is_gone(plane: ComputePlane) -> None:
    """6.9 (1): the same in the other order."""
    agent, request, instance = await running(plane)
    await plane.terminate(request)
    assert (await agent.ended(request, instance, GONE))[0] == 200
    await released(plane, request)
    assert (await agent.ended_by_user(request, instance))[0] == 200
    record = await plane.state(request, COMPLETED)
    assert (record.reason, record.category) == ("scaled down", None)


@pytest.mark.parametrize("first", ["container-restart-loop", GONE])
async def test_a_failure_twice_keeps_its_cause(plane: ComputePlane, first: str) -> None:
    """6.9 (1): the first true cause stays, in either order."""
    agent, request, instance = await running(plane)
    causes = (first, GONE if first != GONE else "container-restart-loop")
    for cause in causes:
        assert (await agent.ended(request, instance, cause))[0] == 200

    def known() -> bool:
        record = plane.record(request)
        return record is not None and (record.state, record.category) == (FAILED, "crash")

    await eventually(known, f"the cause, not {plane.record(request)}")
    await released(plane, request)


async def test_a_failure_reported_again_and_again(plane: ComputePlane) -> None:
    """6.9 (4): the same status is posted up to three times after an outage; one event, one record."""
    agent, request, instance = await running(plane)
    for _ in range(3):
        assert (await agent.ended(request, instance, "image-pull-issues"))[0] == 200
    first = await plane.state(request, FAILED)
    assert (await agent.ended(request, instance, "degraded-worker"))[0] == 200
    assert (await plane.state(request, FAILED)).category == first.category == "image_pull"


async def test_both_reports_at_the_same_time(plane: ComputePlane) -> None:
    """6.9 (1): at the same tick, so they are written at the same time."""
    agent, request, instance = await running(plane)
    await plane.terminate(request)
    answers = await asyncio.gather(
        agent.ended_by_user(request, instance), agent.ended(request, instance, GONE)
    )
    assert [status for status, _ in answers] == [200, 200]
    await plane.state(request, COMPLETED)
    await released(plane, request)


async def test_a_heartbeat_frees_what_no_second_report_did(plane: ComputePlane) -> None:
    """6.9 (1), 6.6: GPUs are free when the heartbeat's allocated has fallen."""
    agent, request, instance = await running(plane)
    await plane.terminate(request)
    await agent.ended_by_user(request, instance)
    await plane.state(request, COMPLETED)
    await agent.heartbeat(allocated=1)
    assert plane.record(request).released_at is None  # type: ignore[union-attr]
    await agent.heartbeat(allocated=0)
    await released(plane, request)


# --- 2: states that are left out


async def test_running_without_starting(plane: ComputePlane) -> None:
    """6.9 (2): "starting" is skipped when the pod is ready before the tick."""
    _, request, _ = await running(plane)
    assert plane.record(request).state is RUNNING  # type: ignore[union-attr]


async def test_terminated_without_shutting_down(plane: ComputePlane) -> None:
    """6.9 (2): never "shutting-down"."""
    agent, request, instance = await running(plane)
    assert (await agent.ended(request, instance, "failed"))[0] == 200
    assert (await plane.state(request, FAILED)).category == "unknown"


async def test_starting_after_running(plane: ComputePlane) -> None:
    """6.9 (12): crash loops, image pulls again, a node that is not ready."""
    agent, request, instance = await running(plane)
    assert (await agent.report(request, instance, "starting", instanceIps=["", ""]))[0] == 200
    await plane.state(request, STARTING)
    assert (await agent.report(request, instance, "running"))[0] == 200
    await plane.state(request, RUNNING)


# --- 3 and 4: chains of the same call, revived requests


async def test_fifty_acknowledgements(plane: ComputePlane) -> None:
    """6.9 (4): each is 200, and the first one counts."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    answers = await asyncio.gather(*(agent.acknowledge(request) for _ in range(50)))
    assert {status for status, _ in answers} == {200}
    first = plane.record(request)
    assert first is not None
    assert first.acknowledged_at is not None
    assert await agent.acknowledge(request) == (200, {})
    assert plane.record(request) == first


async def test_success_is_200_and_nothing_else(plane: ComputePlane) -> None:
    """6.9 (3): 201 or 204 would end the request without a word."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    instance = f"0-sr-{request}"
    answers = [
        await agent.register(),
        await agent.heartbeat(),
        await agent.acknowledge(request),
        await agent.report(request, instance, "starting"),
        await agent.report(request, instance, "running"),
        await agent.ended_by_user(request, instance),
        await agent.ended(request, instance, GONE),
        await agent.call("GET", f"/v1/si/clusters/{agent.cluster_id}/instances"),
        await agent.call("GET", f"/v1/nvca/clusters/{agent.cluster_id}/credentials"),
    ]
    assert {status for status, _ in answers} == {200}
    assert all(isinstance(body, dict) for _, body in answers)


async def test_a_request_that_was_given_up_and_comes_back(plane: ComputePlane) -> None:
    """6.9 (3): refused by 412, silent, and later a pod exists: it is deleted by 412 on its report."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    await plane.change(request, state=FAILED, category="lost", reason="lost: not taken on in time")
    await plane.state(request, FAILED)
    assert (await agent.acknowledge(request))[0] == 412
    assert (await agent.report(request, f"0-sr-{request}", "running"))[0] == 412
    status, _ = await agent.ended(request, f"0-sr-{request}", "instance-terminated-precondition-failure")
    assert status == 200
    await plane.state(request, FAILED)


async def test_a_late_acknowledgement_of_an_open_request_is_taken(plane: ComputePlane) -> None:
    """6.9 (3): a later chain gets through, after the order was repeated."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    await plane.order(version, agent.cluster_id, request_id=request, attempt=1, write=False)
    assert (await agent.acknowledge(request))[0] == 200
    for message in await agent.fetch(CREATION, seconds=0.5):
        assert (await agent.acknowledge(request))[0] == 200
        await agent.confirm(message)
    assert (await agent.report(request, f"0-sr-{request}", "running"))[0] == 200
    await plane.state(request, RUNNING)


async def test_a_report_without_an_acknowledgement(plane: ComputePlane) -> None:
    """6.9 (3): the answer to the PUT was lost; the report says as much."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    assert (await agent.report(request, f"0-sr-{request}", "running"))[0] == 200
    assert (await plane.state(request, RUNNING)).acknowledged_at is not None


async def test_a_report_for_an_instance_of_a_record_that_is_gone(plane: ComputePlane) -> None:
    """6.9 (8 of 12.2): the agent never clears what is over here, so the report is answered 412."""
    agent, request, instance = await running(plane)
    record = plane.record(request)
    assert record is not None
    await plane.instances.delete(record.key)
    await eventually(lambda: plane.record(request) is None, "the record is gone")

    async def refused() -> bool:
        return (await agent.report(request, instance, "running"))[0] == 412

    await eventually(refused, "412")
    assert (await agent.ended(request, instance, "instance-terminated-precondition-failure"))[0] == 404


# --- 9 to 13


async def test_a_second_instance_of_a_request_is_not_kept(plane: ComputePlane) -> None:
    """6.9 (9): one instance a message; what an agent makes beyond it is deleted."""
    agent, request, instance = await running(plane)
    second = f"1-sr-{request}"
    assert (await agent.report(request, second, "running"))[0] == 412
    assert (await agent.ended(request, second, "instance-terminated-precondition-failure"))[0] == 200
    record = plane.record(request)
    assert record is not None
    assert (record.id, record.state) == (instance, RUNNING)


async def test_a_message_that_the_agent_could_not_carry_out(plane: ComputePlane) -> None:
    """6.9 (11): acknowledged first, then instance-not-found without a text."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    assert (await agent.acknowledge(request))[0] == 200
    assert (await agent.ended(request, f"0-sr-{request}", GONE))[0] == 200
    record = await plane.state(request, FAILED)
    assert (record.category, record.reason) == ("lost", f"lost: {GONE}")
    await released(plane, request)


async def test_the_error_log_is_the_reason(plane: ComputePlane) -> None:
    """6.6: healthInfo.errorLog in NVIDIA's form."""
    agent, request, instance = await running(plane)
    log = "pod terminated due to state create-container-error: secret x not found\n---\nCONTAINER WAITING\n"
    status, _ = await agent.ended(request, instance, "create-container-error", healthInfo={"errorLog": log})
    assert status == 200
    assert (await plane.state(request, FAILED)).reason == f"create_container: {log}"


async def test_no_capacity(plane: ComputePlane) -> None:
    """6.6: its own status word, without a cause."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    await agent.acknowledge(request)
    status, _ = await agent.report(
        request,
        f"0-sr-{request}",
        "terminated",
        status="instance-terminated-no-capacity",
        requestState="closed",
    )
    assert status == 200
    assert (await plane.state(request, FAILED)).category == "capacity"


async def test_a_termination_that_overtakes_its_creation(plane: ComputePlane) -> None:
    """6.4: the unknown id is reported terminated; the creation that comes later is refused."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    await plane.terminate(request)
    ended = await agent.termination()
    assert (await agent.ended_by_user(request, ended["instanceIds"][0]))[0] == 200
    await plane.state(request, COMPLETED)
    await released(plane, request)
    created = await agent.creation()
    assert (await agent.acknowledge(created.request_id))[0] == 412


async def test_a_creation_after_its_end_was_decided(plane: ComputePlane) -> None:
    """6.6: refused by 412, and as nothing will be reported, the record is closed."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    await plane.terminate(request)
    assert (await agent.acknowledge(request))[0] == 412
    record = await plane.state(request, COMPLETED)
    assert record.released_at is not None


async def test_no_goodbye_and_everything_again_after_a_restart(plane: ComputePlane) -> None:
    """6.9 (13): a new connection, a registration, and all instances reported again at once."""
    agent, request, instance = await running(plane)
    before = plane.record(request)
    assert before is not None
    await agent.close()
    again = plane.agent(agent.cluster_id, agent.credential)
    await again.connect()
    assert (await again.register())[0] == 200
    for stream in (CREATION, TERMINATION):
        assert "error" not in await again.create_consumer(stream)
    assert (await again.report(request, instance, "running"))[0] == 200
    after = plane.record(request)
    assert after is not None
    assert (after.state, after.ready_at) == (RUNNING, before.ready_at)
    await plane.terminate(request)
    assert (await again.termination())["instanceIds"] == [instance]


async def test_an_instance_lost_while_the_agent_was_away(plane: ComputePlane) -> None:
    """6.9 (13): at the first tick it is terminated, instance-not-found."""
    agent, request, instance = await running(plane)
    assert (await agent.ended(request, instance, GONE))[0] == 200
    assert (await plane.state(request, FAILED)).category == "lost"


async def test_two_connections_of_one_cluster_share_its_messages(plane: ComputePlane) -> None:
    """6.2: old and new pod of a rolling restart; each message goes to one of them."""
    agent, version = await plane.cluster(), await plane.version()
    other = plane.agent(agent.cluster_id, agent.credential)
    await other.connect()
    requests = {await plane.order(version, agent.cluster_id) for _ in range(6)}
    found = [*await agent.fetch(CREATION, batch=3, seconds=2), *await other.fetch(CREATION, seconds=1)]
    assert {json.loads(each.data)["requestId"] for each in found} == requests
    assert len(found) == 6


async def test_many_reports_at_once_end_in_one_truth(plane: ComputePlane) -> None:
    """6.6: optimistic locking; reports and the autoscaler's own writes at the same time."""
    agent, request, instance = await running(plane)
    calls: list[Any] = [agent.report(request, instance, "running") for _ in range(10)]
    calls += [plane.terminate(request)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    statuses = {each[0] for each in results if isinstance(each, tuple)}
    assert statuses <= {200}
    if isinstance(results[-1], BaseException):
        await plane.terminate(request)
    began = time.time()
    await asyncio.gather(*(agent.ended_by_user(request, instance) for _ in range(5)))
    record = await plane.state(request, COMPLETED)
    assert record.updated_at <= began + 60
