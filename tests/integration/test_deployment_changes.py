"""Deployments that are changed while they serve, with real autoscaler and agent."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil

from nvcf_proto.ids import new_id
from nvcf_proto.models import Instance, InstanceState
from tests.support.platform.compute_plane import deployment_path, load, running_plane


async def test_a_deleted_instance_ends_and_is_replaced_without_a_lost_request(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent()
        version = await plane.deploy({})
        await plane.until(lambda: bool(plane.running(version)), "it serves")
        (first,) = plane.running(version)
        async with load(plane, version) as through:
            await plane.until(lambda: len(through.answers) >= 10, "load")
            await plane.platform.call("DELETE", f"/v2/nvcf/instances/{first.id}", expect=204)
            await plane.until(
                lambda: any(each.id != first.id for each in plane.running(version)), "another one serves"
            )
            served = len(through.answers)
            await plane.until(lambda: len(through.answers) >= served + 10, "load on the new one")
        assert through.statuses().keys() == {200}
        await plane.until(lambda: first.id not in {each.id for each in plane.live(version)}, "it has ended")


async def test_undeploying_without_grace_does_not_wait_for_the_queue(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent()
        version = await plane.deploy({}, SECONDS="2")
        await plane.until(lambda: bool(plane.running(version)), "it serves")
        waiting = [asyncio.create_task(plane.ask(version, number)) for number in range(60)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await plane.platform.call("DELETE", f"{deployment_path(version)}?graceful=false")
        await plane.until(lambda: not plane.live(version), "its instances have ended")
        assert any(not each.done() for each in waiting), "requests still wait"
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_counts_are_changed_in_place_by_patch(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent()
        version = await plane.deploy({"maxInstances": 1})
        await plane.until(lambda: len(plane.running(version)) == 1, "one serves")
        (first,) = plane.running(version)
        shown = (await plane.platform.call("GET", deployment_path(version)))["deployment"]
        name = shown["deploymentSpecifications"][0]["gpuSpecificationId"]
        path = f"/v2/nvcf/deployments/{shown['deploymentId']}/gpu-specifications/{name}"
        await plane.platform.call("PATCH", path, {"minInstances": 2, "maxInstances": 2})
        await plane.until(lambda: len(plane.running(version)) == 2, "two serve")
        assert first.id in {each.id for each in plane.running(version)}, "the first one stays"


async def test_instances_of_a_deleted_version_end(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent()
        version = await plane.deploy({})
        await plane.until(lambda: bool(plane.running(version)), "it serves")
        (first,) = plane.running(version)
        await plane.platform.call("DELETE", deployment_path(version))
        path = f"/v2/nvcf/functions/{version.function_id}/versions/{version.id}"
        await plane.platform.call("DELETE", path, expect=204)
        await plane.until(lambda: not plane.live(version), "its instance has ended")
        assert first.pid is not None
        assert not psutil.pid_exists(first.pid)


async def test_a_record_of_an_earlier_release_is_closed(tmp_path: Path) -> None:
    """Its key is the instance's id, and no agent of today knows it: gateway and autoscaler both close it."""
    async with running_plane(tmp_path) as plane:
        version = await plane.platform.deployed_version()
        now = time.time()
        old = Instance(new_id(), version.function_id, version.id, "local", InstanceState.RUNNING, now, now)
        await plane.instances.create(old.key, old)

        def closed() -> bool:
            return any(each.id == old.id and each.state is InstanceState.FAILED for each in plane.of(version))

        await plane.until(closed, "it is closed")
