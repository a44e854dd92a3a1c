"""Instances follow demand on a broker cluster: a node lost with three copies, and demand in two regions."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nvcf_proto.models import INSTANCES_BUCKET, InstanceState
from tests.support.platform.broker_cluster import running_cluster
from tests.support.platform.compute_plane import Plane, running_plane_on
from tests.support.platform.gateways import Gateway, Version, messages_in

pytestmark = [pytest.mark.xdist_group("regions"), pytest.mark.timeout(240)]

FROM_ZERO = {"gpu": "SIM", "minInstances": 0, "maxInstances": 4}
SOON = {"scaleToZeroDelay": 1.0}


async def leader_of(plane: Plane, stream: str) -> str:
    """The server that leads a stream."""
    answer = await plane.client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
    return str(json.loads(answer.data)["cluster"]["leader"])


async def queued(plane: Plane, version: Version) -> int:
    """Requests in the queues of both regions."""
    streams = [f"rq_{region}_{version.id}" for region in ("east", "west")]
    return sum([await messages_in(plane.client, stream) for stream in streams])


async def answered(plane: Plane, gateway: Gateway, version: Version, number: int) -> dict[str, Any]:
    """One caller with a key, who asks again until there is an answer, as one does who wants it."""
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
        await asyncio.sleep(0.2)
    raise AssertionError(f"{number} was never answered")


async def test_the_loss_of_a_broker_node_costs_no_instance_and_no_request(tmp_path: Path) -> None:
    flags = ("--replicas", "3")
    async with (
        running_cluster(tmp_path, [("local",)] * 3, *flags) as (cluster, platform),
        running_plane_on(platform, autoscalers=2, flags=flags) as plane,
    ):
        for name in ("one", "two"):
            await plane.start_agent(name, "--gpu", "SIM=2")
        version = await plane.deploy(FROM_ZERO, scaling=SOON, SECONDS="0.1")
        fixed = await plane.deploy({"minInstances": 2, "maxInstances": 2})
        await plane.until(lambda: len(plane.running(fixed)) == 2, "two that always run")
        before = {each.id: each.pid for each in plane.running(fixed)}
        first = await answered(plane, platform.gateway, version, -1)
        assert first["id"] == -1
        node = cluster.named(await leader_of(plane, f"KV_{INSTANCES_BUCKET}"))
        asked = [asyncio.create_task(answered(plane, platform.gateway, version, n)) for n in range(120)]
        await plane.until(lambda: len(plane.live(version)) > 1, "it grows")
        # In the middle of growing, the node that leads the records is gone.
        await node.kill()
        answers = await asyncio.gather(*asked)
        assert sorted(answer["id"] for answer in answers) == list(range(120))
        assert len({answer["instance"] for answer in answers}) > 1
        await plane.until(lambda: not plane.live(version), "back to zero without that node", 90)
        # And once more from zero, with two nodes of three.
        assert (await answered(plane, platform.gateway, version, 500))["id"] == 500
        await node.start()
        assert (await answered(plane, platform.gateway, version, 501))["id"] == 501
        assert {each.id: each.pid for each in plane.running(fixed)} == before
        assert len(plane.live(fixed)) == 2


async def test_demand_of_both_regions_counts_and_either_wakes(tmp_path: Path) -> None:
    async with (
        running_cluster(tmp_path, [("east",), ("west",)]) as (_, platform),
        running_plane_on(platform, flags=("--regions", "east,west")) as plane,
    ):
        east, west = platform.gateways
        # The one cluster is in the east; requests of the west are served by its workers, too.
        await plane.start_agent("one", "--gpu", "SIM=4", "--region", "east")
        version = await plane.deploy(FROM_ZERO, scaling=SOON, SECONDS="0.2")
        assert not plane.of(version)
        answer = await answered(plane, west, version, 1)
        assert answer["id"] == 1
        await plane.until(lambda: not plane.live(version), "back to zero")
        both = [(gateway, number) for number in range(40) for gateway in (east, west)]
        # It reconciles when all are queued, so that its reason counts all.
        plane.autoscalers[0].kill(signal.SIGSTOP)
        async with asyncio.TaskGroup() as callers:
            calls = [
                callers.create_task(answered(plane, gateway, version, 100 + index))
                for index, (gateway, _) in enumerate(both)
            ]
            async with asyncio.timeout(30):
                while await queued(plane, version) < 80:
                    await asyncio.sleep(0.05)
            plane.autoscalers[0].kill(signal.SIGCONT)
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


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
async def test_an_instance_that_is_gone_takes_no_later_request_with_it(
    tmp_path: Path, ending: signal.Signals
) -> None:
    """What a worker had asked for ends with it, on whichever node of the broker. Else a request that comes
    later would be sent to no worker, and wait for its ack wait.
    """
    file = tmp_path / "function.py"
    file.write_text("async def handler(request):\n    await request.read()\n    return {}\n")
    async with running_cluster(tmp_path, [("east",), ("west",)]) as (_, platform):
        version = await platform.deployed_version()
        client = await platform.broker_client()

        async def ask(gateway: Gateway, seconds: str) -> int:
            headers = {**platform.authorization(), "NVCF-POLL-SECONDS": seconds}
            url = gateway.url + version.pexec
            async with platform.session.post(url, json={}, headers=headers) as response:
                return response.status

        async def queue(region: str) -> tuple[int, int, int]:
            """Waiting and delivered requests, and pulls."""
            stream = f"rq_{region}_{version.id}"
            answer = await client.request(f"$JS.API.CONSUMER.INFO.{stream}.{stream}_workers", b"", timeout=5)
            info = json.loads(answer.data)
            return info["num_pending"], info["num_ack_pending"], info["num_waiting"]

        try:
            worker = await platform.start_worker(version, file, "handler")
            for gateway, region in zip(platform.gateways, ("east", "west"), strict=True):
                assert await ask(gateway, "30") == 200
                async with asyncio.timeout(10):
                    while (await queue(region))[:2] != (0, 0):
                        await asyncio.sleep(0.05)
            worker.kill(ending)
            await worker.wait()
            for gateway, region in zip(platform.gateways, ("east", "west"), strict=True):
                if ending is signal.SIGKILL:
                    # Nobody could withdraw what it had asked for, but that lasts for seconds only.
                    async with asyncio.timeout(10):
                        while (await queue(region))[2]:
                            await asyncio.sleep(0.05)
                assert (await queue(region))[2] == 0
                assert await ask(gateway, "1") == 202
                assert await queue(region) == (1, 0, 0)
            await platform.start_worker(version, file, "handler")
            for region in ("east", "west"):
                await platform.queue_is_empty(version, region)
        finally:
            await client.close()
