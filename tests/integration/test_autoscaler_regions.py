"""Instances follow demand on a broker cluster: a node lost with three copies, and demand in two regions."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from nats.aio.client import Client

from nvcf_proto.models import INSTANCES_BUCKET, InstanceState
from tests.support.platform.broker_cluster import running_cluster
from tests.support.platform.compute_plane import Plane, running_plane_on
from tests.support.platform.gateways import Gateway, Version, messages_in
from tests.support.waiting import eventually

pytestmark = [pytest.mark.xdist_group("regions"), pytest.mark.timeout(240)]

FROM_ZERO = {"gpu": "SIM", "minInstances": 0, "maxInstances": 4}
SOON = {"scaleToZeroDelay": 1.0}


async def leader_of(plane: Plane, stream: str) -> str:
    """Return the name of the server that leads a stream."""
    info = await plane.client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=30)
    return str(json.loads(info.data)["cluster"]["leader"])


async def queued(client: Client, version: Version) -> int:
    """Return the number of requests in the queues of both regions."""
    streams = [f"rq_{region}_{version.id}" for region in ("east", "west")]
    return sum([await messages_in(client, stream) for stream in streams])


async def completed(plane: Plane, gateway: Gateway, version: Version, number: int) -> dict[str, Any]:
    """Make a call with an idempotency key, and repeat it until it is completed. Returns its result."""
    headers = {**plane.platform.authorization(), "Idempotency-Key": f"{version.id}-{number}"}
    for _ in range(100):
        try:
            async with plane.platform.session.post(
                gateway.url + version.pexec, json={"id": number}, headers=headers
            ) as response:
                if response.status == 200:
                    return dict(await response.json(content_type=None))
                assert response.status in (202, 500, 502, 503, 504), response.status
        except aiohttp.ClientError:
            pass
        # The pause of a client between two attempts.
        await asyncio.sleep(0.2)
    raise AssertionError(f"call {number} is not completed after 100 attempts")


@pytest.mark.slow
async def test_the_loss_of_a_broker_node_costs_no_instance_and_no_request(tmp_path: Path) -> None:
    flags = ("--replicas", "3")
    async with (
        running_cluster(tmp_path, [("local",)] * 3, *flags, control=True) as (cluster, platform),
        running_plane_on(platform, autoscalers=2, flags=flags) as plane,
    ):
        for name in ("one", "two"):
            await plane.start_agent(name, "--gpu", "SIM=2")
        version = await plane.deploy(FROM_ZERO, scaling=SOON, SECONDS="0.1")
        fixed = await plane.deploy({"minInstances": 2, "maxInstances": 2})
        await plane.until(lambda: len(plane.running(fixed)) == 2, "the two fixed instances run")
        before = {each.id: each.pid for each in plane.running(fixed)}
        first = await completed(plane, platform.gateway, version, -1)
        assert first["id"] == -1
        node = cluster.named(await leader_of(plane, f"KV_{INSTANCES_BUCKET}"))
        asked = [asyncio.create_task(completed(plane, platform.gateway, version, n)) for n in range(120)]
        await plane.until(lambda: len(plane.live(version)) > 1, "it grows")
        # The node that leads the instance records is lost during the scale-up.
        await node.kill()
        answers = await asyncio.gather(*asked)
        assert sorted(answer["id"] for answer in answers) == list(range(120))
        assert len({answer["instance"] for answer in answers}) > 1
        await plane.until(lambda: not plane.live(version), "back to zero without that node", 90)
        # Scale up from zero once more, with two of three nodes.
        assert (await completed(plane, platform.gateway, version, 500))["id"] == 500
        await node.start()
        assert (await completed(plane, platform.gateway, version, 501))["id"] == 501
        assert {each.id: each.pid for each in plane.running(fixed)} == before
        assert len(plane.live(fixed)) == 2


@pytest.mark.slow
async def test_demand_of_both_regions_counts_and_either_region_scales_from_zero(tmp_path: Path) -> None:
    regions = ("--regions", "east,west")
    async with (
        running_cluster(tmp_path, [("east",), ("west",)], control=True) as (_, platform),
        running_plane_on(platform, flags=regions) as plane,
        contextlib.AsyncExitStack() as stack,
    ):
        east, west = platform.gateways
        # The account of the queues is not that of the records.
        client = await platform.broker_client()
        stack.push_async_callback(client.close)
        # The only cluster is in the east. Its workers serve requests of the west too.
        await plane.start_agent("one", "--gpu", "SIM=4", region="east")
        version = await plane.deploy(FROM_ZERO, scaling=SOON, SECONDS="0.2")
        assert not plane.of(version)
        answer = await completed(plane, west, version, 1)
        assert answer["id"] == 1
        await plane.until(lambda: not plane.live(version), "back to zero")
        both = [(gateway, number) for number in range(40) for gateway in (east, west)]
        # The next autoscaler starts after all requests are queued, so that its reason counts all.
        plane.autoscalers[0].kill(signal.SIGTERM)
        await plane.autoscalers[0].wait()
        async with asyncio.TaskGroup() as callers:
            calls = [
                callers.create_task(completed(plane, gateway, version, 100 + index))
                for index, (gateway, _) in enumerate(both)
            ]

            async def all_queued() -> bool:
                return await queued(client, version) >= 80

            await eventually(all_queued, "80 requests are queued")
            await plane.start_autoscaler(*regions)
        answers = [call.result() for call in calls]
        assert sorted(each["id"] for each in answers) == [100 + index for index in range(80)]
        assert len({each["instance"] for each in answers}) == 4
        # The reason counts the queues of both regions together.
        events = [
            event for event in plane.events if event.version_id == version.id and event.data.get("queued")
        ]
        assert max(int(event.data["queued"]) for event in events) == 80
        await plane.until(lambda: not plane.live(version), "back to zero")
        assert {each.state for each in plane.of(version)} == {InstanceState.COMPLETED}


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
async def test_an_instance_that_ended_receives_no_later_request(
    tmp_path: Path, ending: signal.Signals
) -> None:
    """The pulls of a worker end with it, on every broker node.

    Otherwise the broker sends a later request to no worker, and it waits for the ack wait.
    """
    file = tmp_path / "function.py"
    file.write_text("async def handler(request):\n    await request.read()\n    return {}\n")
    async with running_cluster(tmp_path, [("east",), ("west",)]) as (_, platform):
        version = await platform.deployed_version()
        client = await platform.broker_client()

        async def invoke(gateway: Gateway, seconds: str) -> int:
            headers = {**platform.authorization(), "NVCF-POLL-SECONDS": seconds}
            url = gateway.url + version.pexec
            async with platform.session.post(url, json={}, headers=headers) as response:
                return response.status

        async def queue(region: str) -> tuple[int, int, int]:
            """Return the numbers of waiting requests, of delivered requests and of pulls."""
            stream = f"rq_{region}_{version.id}"
            subject = f"$JS.API.CONSUMER.INFO.{stream}.{stream}_workers"
            info = json.loads((await client.request(subject, b"", timeout=30)).data)
            return info["num_pending"], info["num_ack_pending"], info["num_waiting"]

        async def all_settled(region: str) -> bool:
            return (await queue(region))[:2] == (0, 0)

        async def no_pull(region: str) -> bool:
            return (await queue(region))[2] == 0

        try:
            worker = await platform.start_worker(version, file, "handler")
            for gateway, region in zip(platform.gateways, ("east", "west"), strict=True):
                assert await invoke(gateway, "30") == 200
                await eventually(functools.partial(all_settled, region), f"the queue of {region} is empty")
            worker.kill(ending)
            await worker.wait()
            for gateway, region in zip(platform.gateways, ("east", "west"), strict=True):
                if ending is signal.SIGKILL:
                    # A killed worker cannot withdraw its pulls, but they expire.
                    await eventually(functools.partial(no_pull, region), f"no pull is left in {region}")
                assert (await queue(region))[2] == 0
                assert await invoke(gateway, "1") == 202
                assert await queue(region) == (1, 0, 0)
            await platform.start_worker(version, file, "handler")
            for region in ("east", "west"):
                await platform.queue_is_empty(version, region)
        finally:
            await client.close()
