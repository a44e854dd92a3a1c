"""Form of the routes that agents call (docs/reference/protocol.md, section 6.5)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.models import InstanceState
from tests.support.peers.icms_agent import GPUS
from tests.support.platform.icms import ComputePlane
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module")]


async def test_a_registration_that_comes_again_is_200(plane: ComputePlane) -> None:
    """6.5: NVIDIA's agent sends it twice within a minute, and every hour; 409 would end it."""
    agent = await plane.cluster(connect=False)
    first = await agent.register()
    assert first[0] == 200
    for _ in range(3):
        assert await agent.register() == first


async def test_credentials_are_empty(plane: ComputePlane) -> None:
    """6.5: with an entry in one of the maps NVIDIA's agent looks for queues elsewhere."""
    agent = await plane.cluster(connect=False)
    assert await agent.call("GET", f"/v1/nvca/clusters/{agent.cluster_id}/credentials") == (
        200,
        {
            "creationQueue": {},
            "clusterCreationQueue": {},
            "clusterCreationQueueForTasks": {},
            "terminationQueue": None,
        },
    )


@pytest.mark.parametrize("status", ["READY", "CORDON", "CORDON_AND_DRAIN"])
async def test_a_registration_says_whether_instances_are_taken(plane: ComputePlane, status: str) -> None:
    """6.5: status READY, CORDON or CORDON_AND_DRAIN."""
    agent = await plane.cluster(connect=False)
    assert (await agent.register(status=status))[0] == 200
    await eventually(lambda: agent.cluster_id in plane.clusters, "the live record")
    live = plane.clusters.get(agent.cluster_id)
    assert live is not None
    assert (live.cordoned, live.draining) == (status != "READY", status == "CORDON_AND_DRAIN")


async def test_members_that_nobody_knows_are_ignored(plane: ComputePlane) -> None:
    """6.5: unknown members are ignored everywhere."""
    agent, version = await plane.cluster(), await plane.version()
    assert (await agent.register(surprise={"a": [1]}, gpus=[{**GPUS[0], "colour": "green"}]))[0] == 200
    assert (await agent.heartbeat(surprise=None, upgradeStatus="none"))[0] == 200
    request = await plane.order(version, agent.cluster_id)
    created = await agent.creation()
    assert (await agent.acknowledge(request, surprise=1))[0] == 200
    assert (await agent.report(request, created.instance_id, "running", surprise=1))[0] == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"healthInfo": {}},
        {"healthInfo": None},
        {"instanceIps": ["", ""]},
        {"instanceIps": None},
        {"systemFailure": None, "terminationCause": None},
        {"action": "RequestSpotInstancesForTask"},
        {"status": "a word of a later release"},
    ],
)
async def test_what_nvidias_agent_leaves_empty_is_accepted(
    plane: ComputePlane, changes: dict[str, Any]
) -> None:
    """6.5: healthInfo is often empty, instanceIps are empty texts while there are none."""
    agent, version = await plane.cluster(connect=False), await plane.version()
    request = new_id()
    await plane.write(version, agent.cluster_id, request)
    assert (await agent.report(request, f"0-sr-{request}", "starting", **changes))[0] == 200
    await plane.state(request, InstanceState.STARTING)


BAD = [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"[" * 20_000]


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
async def test_a_body_that_is_no_json_object_is_400(plane: ComputePlane, body: bytes) -> None:
    """6.5: 400 with a problem, on every route with a body."""
    agent = await plane.cluster(connect=False)
    for method, path in (
        ("PUT", f"/v1/nvca/clusters/{agent.cluster_id}/register"),
        ("POST", f"/v1/nvca/clusters/{agent.cluster_id}/heartbeat"),
        ("PUT", f"/v1/nvca/clusters/{agent.cluster_id}/jwks"),
        ("PUT", f"/v1/sirs/{new_id()}"),
        ("POST", f"/v1/sirs/{new_id()}/0-sr-x"),
    ):
        status, problem = await agent.call(method, path, body)
        assert (status, problem["status"]) == (400, 400), path


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"instanceState": "sleeping"}, "instanceState"),
        ({"instanceState": None}, "instanceState"),
        ({"instanceIps": "10.0.0.1"}, "instanceIps"),
        ({"healthInfo": "sick"}, "healthInfo"),
        ({"heldRequests": ["x"] * 20_000}, "heldRequests"),
        ({"details": {"restarts": -1}}, "details.restarts"),
    ],
)
async def test_a_report_that_is_malformed_names_the_field(
    plane: ComputePlane, changes: dict[str, Any], field: str
) -> None:
    """6.5: 400; a bug of the agent, which its author can find."""
    agent = await plane.cluster(connect=False)
    status, problem = await agent.report(new_id(), "0-sr-x", "running", **changes)
    assert (status, problem["field"]) == (400, field)


async def test_bodies_are_bounded(plane: ComputePlane) -> None:
    """6.5: 413 beyond the bound, before the body has been read."""
    agent = await plane.cluster(connect=False)
    large = json.dumps({"status": "x" * 3_000_000}).encode()
    for method, path in (
        ("PUT", f"/v1/nvca/clusters/{agent.cluster_id}/register"),
        ("POST", f"/v1/nvca/clusters/{agent.cluster_id}/heartbeat"),
        ("POST", f"/v1/sirs/{new_id()}/0-sr-x"),
    ):
        assert (await agent.call(method, path, large))[0] == 413


@pytest.mark.parametrize("identifier", ["a.b", "*", ">", "%2e%2e", "a%20b", "x" * 200, "-a"])
async def test_ids_that_nothing_can_have_are_404(plane: ComputePlane, identifier: str) -> None:
    """6.5: they reach no bucket."""
    agent = await plane.cluster(connect=False)
    assert (await agent.acknowledge(identifier))[0] == 404
    assert (await agent.report(identifier, "0-sr-x", "running"))[0] == 404


async def test_the_list_for_reconciliation(plane: ComputePlane) -> None:
    """6.5: what was reported and has not ended, with its state; nothing that was only ordered."""
    agent, version = await plane.cluster(), await plane.version()
    path = f"/v1/si/clusters/{agent.cluster_id}/instances"
    one, two, three = [await plane.running(agent, version) for _ in range(3)]
    only_ordered = await plane.order(version, agent.cluster_id)
    await plane.terminate(two)
    assert (await agent.ended(three, f"0-sr-{three}", "failed"))[0] == 200

    async def as_expected() -> bool:
        status, answer = await agent.call("GET", path)
        assert status == 200
        found = {each["requestId"]: each["instanceState"] for each in answer["instances"]}
        assert only_ordered not in found
        return found == {one: "running", two: "shutting-down"}

    await eventually(as_expected, "the list")


async def test_events_tell_of_each_change(plane: ComputePlane) -> None:
    """6.8: nvcf_events has the instance, the cluster's name and the new state."""
    agent = await plane.cluster("event-lab")
    version = await plane.version()
    request = await plane.running(agent, version)
    assert (await agent.ended(request, f"0-sr-{request}", "container-restart-loop"))[0] == 200

    async def told() -> bool:
        path = f"/v2/nvcf/events?functionVersionId={version.id}"
        texts = [each["text"] for each in (await plane.platform.call("GET", path))["events"]]
        return (
            len(texts) >= 2
            and "on event-lab: FAILED (crash: container-restart-loop)" in texts[0]
            and "on event-lab: RUNNING (ready after" in texts[1]
        )

    await eventually(told, "the events")


async def test_requests_that_an_ended_instance_held_are_queued_again(plane: ComputePlane) -> None:
    """6.5: heldRequests are handed back at once, not after the ack wait of the queue."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.running(agent, version)
    held = await plane.pull(version, lambda: plane.call_in_background(version))
    final = {"details": {"restarts": 0}, "heldRequests": [held.reply]}
    assert (await agent.ended(request, f"0-sr-{request}", "failed", **final))[0] == 200
    again = await plane.pull(version)
    assert (again.subject, again.data) == (held.subject, held.data)
    assert again.metadata.num_delivered == 2
    assert (await agent.ended(request, f"0-sr-{request}", "failed", **final))[0] == 200
    assert await plane.pull(version, seconds=0.5, wanted=False) is None, "once, however often it is reported"
