"""The autoscaler and a gateway with an agent as NVIDIA's behaves (protocol.md, section 6.9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvcf_proto.models import Instance, InstanceState
from tests.support.peers.icms_agent import AgentPeer, Creation
from tests.support.platform.compute_plane import Plane, running_plane
from tests.support.platform.gateways import ACCOUNT, Version


async def slow_cluster(plane: Plane) -> AgentPeer:
    """Register a cluster of two nodes with 8 GPUs each, and its agent."""
    platform = plane.platform
    body = {"clusterName": "h100"}
    made = await platform.call("POST", f"/v1/accounts/{ACCOUNT}/clusters", body)
    peer = AgentPeer(
        platform.session, platform.gateway.url, platform.broker.url, made["clusterId"], made["clusterKey"]
    )
    assert (await peer.register())[0] == 200
    assert (await peer.heartbeat())[0] == 200
    await peer.connect()
    return peer


def kind(gpus: int, count: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a specification of instances with so many H100."""
    counts = {"minInstances": count, "maxInstances": count}
    return {"gpu": "H100", "instanceType": f"NCP.GPU.H100_{gpus}x", **counts, **changes}


async def deploy(plane: Plane, specification: dict[str, Any]) -> Version:
    """Deploy an image, which is what such a cluster runs."""
    version = await plane.platform.create_version()
    await plane.platform.deploy(version, **specification)
    return version


async def serve(peer: AgentPeer, count: int = 1) -> list[Creation]:
    """Take up so many orders, and report that their instances run."""
    found = []
    for _ in range(count):
        creation = await peer.creation(seconds=30.0)
        assert (await peer.acknowledge(creation.request_id))[0] == 200
        await peer.confirm(creation.message)
        assert (await peer.report(creation.request_id, creation.instance_id, "running"))[0] == 200
        found.append(creation)
    return found


def named(plane: Plane, version: Version) -> dict[str, Instance]:
    return {each.request_id: each for each in plane.of(version)}


async def test_gpus_of_an_ended_instance_are_not_given_away_before_they_are_free(tmp_path: Path) -> None:
    """The first report of an end comes while the pod still holds its GPUs."""
    async with running_plane(tmp_path) as plane:
        peer = await slow_cluster(plane)
        version = await deploy(plane, kind(8, 2))
        await serve(peer, 2)
        await plane.until(lambda: len(plane.running(version)) == 2, "two instances")
        # Both nodes are full, so a changed deployment replaces one instance after the other.
        await plane.redeploy(version, kind(8, 2, maxRequestConcurrency=2))
        ending = await peer.termination(seconds=30.0)
        request_id, instance_id = ending["requestId"], ending["instanceIds"][0]
        assert (await peer.ended_by_user(request_id, instance_id))[0] == 200
        await plane.until(
            lambda: named(plane, version)[request_id].state is InstanceState.COMPLETED, "the end is noted"
        )
        # The autoscaler has looked at the change: a version that needs a GPU finds no room.
        other = await deploy(plane, kind(1))
        await plane.until(lambda: any("no place for 1" in text for text in plane.words()), "no room")
        assert not plane.of(other)
        assert len(plane.of(version)) == 2
        assert (await peer.ended(request_id, instance_id, "instance-not-found"))[0] == 200
        await plane.until(lambda: len(plane.of(version)) + len(plane.of(other)) > 2, "its GPUs are used")
        record = named(plane, version)[request_id]
        assert record.released_at is not None
        assert "its successor needs room" in str(record.reason), "the first cause stays"


async def test_an_instance_is_ordered_only_where_it_fits_on_one_node(tmp_path: Path) -> None:
    """11 of 16 GPUs are free, but perhaps not 8 on one node: such an instance would hang unscheduled."""
    async with running_plane(tmp_path) as plane:
        peer = await slow_cluster(plane)
        four, one = await deploy(plane, kind(4)), await deploy(plane, kind(1))
        held = {each.body["functionVersionId"]: each for each in await serve(peer, 2)}
        await plane.until(lambda: bool(plane.running(four) and plane.running(one)), "both run")
        eight = await deploy(plane, kind(8))
        await plane.until(lambda: any("no place for 1" in text for text in plane.words()), "no room")
        assert not plane.of(eight)
        await plane.undeploy(one)
        assert (await peer.termination(seconds=60.0))["requestId"] == held[one.id].request_id
        small = held[one.id]
        await peer.ended_by_user(small.request_id, small.instance_id)
        await peer.ended(small.request_id, small.instance_id, "instance-not-found")
        (creation,) = await serve(peer)
        assert creation.body["functionVersionId"] == eight.id
        assert creation.body["requestedGPUCount"] == 8


async def test_a_start_that_ends_without_a_reason_is_not_tried_without_end(tmp_path: Path) -> None:
    """What the agent cannot translate it acknowledges, and reports it as not found."""
    async with running_plane(tmp_path) as plane:
        peer = await slow_cluster(plane)
        version = await deploy(plane, kind(1))
        creation = await peer.creation(seconds=30.0)
        await peer.acknowledge(creation.request_id)
        await peer.confirm(creation.message)
        await peer.ended(creation.request_id, creation.instance_id, "instance-not-found")
        await plane.until(lambda: any("failed to start" in text for text in plane.words()), "it waits")
        assert len(plane.of(version)) <= 2
