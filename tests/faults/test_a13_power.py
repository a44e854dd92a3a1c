"""A13: what a caller was told is kept is on disk before it is told.

The power fails: only what was synced remains, on a real ext4 file system.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nvcf_broker.server import LocalBroker
from nvcf_gateway.durability import sync_file_system
from tests.support.platform.broker_cluster import BrokerCluster
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.processes import Child
from tests.support.platform.small_disk import SmallDisk, needs_small_disks
from tests.support.waiting import eventually

pytestmark = [needs_small_disks, pytest.mark.timeout(300)]
# Each execution has a result of its own.
FUNCTION = """
import uuid
def handler(request): return request.read().decode()[:8] + " " + uuid.uuid4().hex
"""
LARGE = "x" * 100_000


@dataclass
class Promises:
    """What callers were told."""

    version: Version
    kept: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    created: Version | None = None
    asset: str = ""


async def _worker(platform: Platform, version: Version) -> Child:
    file = platform.directory / "function.py"
    file.write_text(FUNCTION)
    return await platform.start_worker(version, file, "handler", concurrency=8)


async def _call(platform: Platform, version: Version, body: str, **headers: str) -> tuple[int, str, str]:
    url = platform.gateway.url + version.pexec
    sent = {**platform.authorization(), **headers}
    async with platform.session.post(url, data=body, headers=sent) as response:
        return response.status, response.headers.get("NVCF-REQID", ""), await response.text()


async def _make_promises(platform: Platform) -> Promises:
    promises = Promises(await platform.deployed_version())
    worker = await _worker(platform, promises.version)

    async def keyed(number: int) -> None:
        body = f"{number:08}" + (LARGE if number % 4 == 0 else "")
        status, _, text = await _call(
            platform, promises.version, body, **{"Idempotency-Key": f"key-{number}"}
        )
        assert status == 200, text
        promises.answers[body] = text

    async def kept(number: int) -> None:
        body = f"{number:08}" + (LARGE if number % 4 == 0 else "")
        status, request_id, text = await _call(platform, promises.version, body, **{"NVCF-POLL-SECONDS": "2"})
        # Whoever was refused was promised nothing.
        assert status in (202, 503, 504), text
        if status == 202:
            promises.kept[request_id] = body

    await asyncio.gather(*(keyed(number) for number in range(12)))
    worker.kill()
    await asyncio.gather(*(kept(number) for number in range(100, 140)))
    assert promises.kept
    promises.created = await platform.create_version("created-last")
    return promises


async def _check(platform: Platform, promises: Promises) -> None:
    assert promises.created is not None
    path = f"/v2/nvcf/functions/{promises.created.function_id}/versions/{promises.created.id}"
    await platform.call("GET", path)
    await _worker(platform, promises.version)

    async def answered(request_id: str, body: str) -> None:
        url = f"{platform.gateway.url}/v2/nvcf/pexec/status/{request_id}"
        status = 202
        while status == 202:
            async with platform.session.get(url, headers=platform.authorization()) as response:
                status, text = response.status, await response.text()
        assert (status, text.split(" ")[0]) == (200, body[:8]), (status, text)

    await asyncio.gather(*(answered(*each) for each in promises.kept.items()))
    for number, (body, text) in enumerate(sorted(promises.answers.items())):
        repeated = await _call(platform, promises.version, body, **{"Idempotency-Key": f"key-{number}"})
        assert (repeated[0], repeated[2]) == (200, text), "executed again"


def _kill(platform: Platform) -> None:
    for child in platform.children:
        if child.running:
            child.kill()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[SmallDisk]]:
    with ExitStack() as stack:
        yield [stack.enter_context(SmallDisk(tmp_path, name=f"node-{number}")) for number in range(3)]


async def test_a13_one_node(tmp_path: Path, disks: list[SmallDisk]) -> None:
    disk = disks[0]
    directory = disk.path / "broker"
    broker = LocalBroker(directory)
    flags = ("--store-folder", str(broker.files.directory.parent))
    async with running_platform(tmp_path, broker=broker, flags=flags) as platform:
        promises = await _make_promises(platform)
        _kill(platform)
        await broker.kill()
        disk.cut_power()
    async with running_platform(tmp_path, broker=LocalBroker(directory), flags=flags) as platform:
        await _check(platform, promises)


async def test_a13_three_nodes(tmp_path: Path, disks: list[SmallDisk]) -> None:
    cluster = BrokerCluster(tmp_path, [("local",)] * 3, sync_always=True)
    # Credentials and configuration are older than the failure.
    for disk in disks:
        sync_file_system(disk.path)
    try:
        await cluster.start()
        flags = ("--replicas", "3")
        async with running_platform(tmp_path, broker=cluster.nodes[0], flags=flags) as platform:
            promises = await _make_promises(platform)
            _kill(platform)
            for node in cluster.nodes:
                await node.kill()
            for disk in disks:
                disk.cut_power()
        await cluster.start()
        async with running_platform(tmp_path, broker=cluster.nodes[0], flags=flags) as platform:
            await _check(platform, promises)
    finally:
        await cluster.stop()


async def test_a13_a_waiting_call_is_published_again(tmp_path: Path) -> None:
    """The broker comes back without a request whose caller still waits."""
    broker = LocalBroker(tmp_path / "broker")
    async with running_platform(tmp_path, broker=broker) as platform:
        version = await platform.deployed_version()
        call = asyncio.create_task(_call(platform, version, "waiting1"))
        client = await platform.broker_client()
        stream = f"rq_local_{version.id}"

        async def queued() -> bool:
            info = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=30)
            return b'"messages":1' in info.data.replace(b" ", b"")

        await eventually(queued, "the request is queued")
        await client.request(f"$JS.API.STREAM.PURGE.{stream}", b"", timeout=30)
        await client.close()
        await broker.kill()
        await broker.start()
        await _worker(platform, version)
        status, _, text = await call
        assert (status, text.split(" ")[0]) == (200, "waiting1")
