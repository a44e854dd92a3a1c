"""The broker loses the control plane's records: instances serve on, and are counted right afterwards."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from nvcf_broker.process import free_port
from tests.integration.test_autoscaler_kills import told_alike, workers
from tests.support.platform.compute_plane import Plane, load, running_plane
from tests.support.platform.gateways import control_flags
from tests.support.platform.processes import end

FIXED = {"gpu": "SIM", "minInstances": 3, "maxInstances": 3}
INSTANCES, CLUSTERS = "nvcf_instances", "nvcf_clusters"


async def lose(plane: Plane, *buckets: str) -> None:
    """Delete buckets, as if their files were gone."""
    for bucket in buckets:
        reply = await plane.client.request(f"$JS.API.STREAM.DELETE.KV_{bucket}", b"", timeout=10)
        assert json.loads(reply.data)["success"]


@pytest.mark.timeout(150)
@pytest.mark.slow
@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("buckets", [(INSTANCES,), (CLUSTERS,), (INSTANCES, CLUSTERS)])
async def test_lost_records_end_no_instance(
    tmp_path: Path, buckets: tuple[str, ...], restarted: bool
) -> None:
    # The gateway that is started again needs the addresses of the first.
    addresses = ("--http", f"127.0.0.1:{free_port()}", "--grpc", f"127.0.0.1:{free_port()}")
    async with running_plane(tmp_path, gateway=addresses) as plane:
        await plane.start_agent("one", "--gpu", "SIM=4")
        version = await plane.deploy(FIXED, SECONDS="0.05")
        await plane.until(lambda: len(plane.running(version)) == 3, "three instances")
        before = workers(plane)
        records = {each.id: each.specification_id for each in plane.running(version)}
        if restarted:
            await end(plane.autoscalers[0])
            await end(plane.platform.gateways[0].child)
            await lose(plane, *buckets)
            plane.platform.gateways.clear()
            await plane.platform.start_gateway(*addresses, *control_flags(plane.platform.broker))
            await plane.start_autoscaler()
        async with load(plane, version) as running:
            if not restarted:
                await lose(plane, *buckets)
            lost = time.monotonic()
            await plane.until(
                lambda: not plane.running(version) or time.monotonic() > lost + 8, "the loss is seen", 30
            )
            await plane.until(
                lambda: told_alike(plane, version) and len(plane.running(version)) == 3,
                "all are counted again, and no other",
                60,
            )
            print(f"\ncounted again after {time.monotonic() - lost:.1f} s")  # noqa: T201
        assert workers(plane) == before, "the same processes"
        assert {each.id: each.specification_id for each in plane.running(version)} == records
        assert running.statuses().keys() == {200}
        await plane.undeploy(version)
        await plane.until(lambda: not plane.live(version) and not workers(plane), "nothing is left")
