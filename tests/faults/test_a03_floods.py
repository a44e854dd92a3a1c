"""A3: floods of data by one tenant, with a worker's token or an invoke key alone, and what the rest felt."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from nats.aio.client import Client

from nvcf_autoscaler.controller.lease import TTL, Lease, LeaseRecord
from nvcf_broker.connection import connect_broker
from nvcf_broker.kv import KvMirror
from nvcf_broker.server import LocalBroker
from nvcf_proto.budget import LEAST_BUDGET
from nvcf_proto.ids import new_id
from nvcf_proto.subjects import session_lookup_subject, worker_inbox_prefix
from tests.faults.test_a03_quotas import ask
from tests.support.peers.worker import broker_token, peer_worker
from tests.support.platform.gateways import Platform, Version, running_platform

SECONDS = 6.0


@pytest_asyncio.fixture
async def small(tmp_path: Path) -> AsyncIterator[Platform]:
    """A platform whose tenants have 192 MiB of disk, and whose control plane has an account of its own."""
    broker = LocalBroker(tmp_path / "broker", data_max=LEAST_BUDGET)
    flags = ("--nats-control-credentials", str(broker.control_credentials_file))
    async with running_platform(tmp_path, broker=broker, flags=flags) as platform:
        yield platform


class Leader:
    """The autoscaler's lease, held as its leader holds it."""

    def __init__(self) -> None:
        self.changes: list[bool] = []
        self.slowest = 0.0


@contextlib.asynccontextmanager
async def leader(platform: Platform) -> AsyncIterator[Leader]:
    """Hold the lease for the length of a context."""
    found, led = Leader(), asyncio.Event()
    client = await connect_broker(
        platform.broker.url, platform.broker.control_credentials_file, name="leader"
    )

    def changed(held: bool) -> None:
        found.changes.append(held)
        led.set()

    try:
        async with KvMirror(client, "nvcf_leases", LeaseRecord.from_json, LeaseRecord.to_json) as mirror:
            await mirror.ready()
            lease = Lease(mirror, "test", "one", time.monotonic)
            update = mirror.update

            async def timed(*arguments: Any) -> int:
                began = time.monotonic()
                try:
                    return await update(*arguments)
                finally:
                    found.slowest = max(found.slowest, time.monotonic() - began)

            mirror.update = timed  # type: ignore[method-assign, assignment] # only to take the time
            keeping = asyncio.create_task(lease.keep(changed))
            try:
                await led.wait()
                yield found
            finally:
                keeping.cancel()
                await asyncio.wait({keeping})
    finally:
        await client.close()


async def records(platform: Platform, version: Version, seconds: float) -> int:
    """Flood the session records of a version with a worker's token."""
    instance = new_id()
    token = await platform.worker_token(version, instance)
    client, sent = Client(), 0
    prefix = worker_inbox_prefix(version.id, instance)
    await client.connect(platform.broker.url, token=broker_token(token), inbox_prefix=prefix.encode())
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(200):
                await client.publish(session_lookup_subject("local", version.id, f"{sent}"), b"x" * 4000)
                sent += 1
            await client.flush(timeout=30)
    finally:
        await client.close()
    return sent


async def stored(platform: Platform, version: Version, seconds: float) -> dict[int, int]:
    """Store what an invoke key can: kept bodies, queued requests, assets. Return the counts of statuses."""
    statuses: dict[int, int] = {}
    end = time.monotonic() + seconds

    async def call(method: str, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
        answer = await ask(platform, method, path, "invoke", **more)
        statuses[answer[0]] = statuses.get(answer[0], 0) + 1
        return answer

    async def bodies() -> None:
        while time.monotonic() < end:
            await call("POST", version.pexec, data=b"x" * 3_000_000, headers={"NVCF-POLL-SECONDS": "1"})

    async def requests() -> None:
        while time.monotonic() < end:
            await call("POST", version.pexec, data=b"x" * 30_000, headers={"NVCF-POLL-SECONDS": "1"})

    async def assets() -> None:
        while time.monotonic() < end:
            status, made = await call("POST", "/v2/nvcf/assets", json={"contentType": "text/plain"})
            if status == 200:
                await call("PUT", made["uploadUrl"], data=b"x" * 2_000_000)
            else:
                await asyncio.sleep(0.05)

    await asyncio.gather(*(bodies() for _ in range(8)), *(requests() for _ in range(16)), assets(), assets())
    return statuses


async def foreign_version(platform: Platform) -> Version:
    """Deploy a function of another account."""
    body = {"name": "other", "containerImage": "example/test:1"}
    function = (await platform.call("POST", "/v2/nvcf/functions", body, key="foreign"))["function"]
    version = Version(function["id"], function["versionId"])
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    await platform.call("POST", path, {"deploymentSpecifications": [{}]}, key="foreign")
    return version


async def test_a3_the_lease_is_kept_under_floods_of_tenants_data(small: Platform) -> None:
    version = await small.deployed_version("attacker")
    async with leader(small) as found:
        sent, statuses = await asyncio.gather(
            records(small, version, SECONDS), stored(small, version, SECONDS)
        )
        print(  # noqa: T201 # the figures belong into the report
            f"{sent} session records, answers {statuses}; slowest renewal {found.slowest * 1000:.0f} ms"
        )
        assert found.changes == [True], "it led all the time"
        assert found.slowest < TTL


async def test_a3_a_flood_by_an_invoke_key_alone(small: Platform) -> None:
    attacked, other = await small.deployed_version("attacker"), await foreign_version(small)
    async with peer_worker(small, other) as worker:
        statuses = await stored(small, attacked, SECONDS)
        print(f"answers {statuses}")  # noqa: T201 # the figures belong into the report
        # 504: the body did not arrive within its poll time, so the call is not kept.
        assert set(statuses) <= {200, 202, 429, 503, 504, 507}
        assert statuses.keys() & {429, 507}, "it was refused in the end"
        # Another account's data and the control plane find room.
        asset = await ask(small, "POST", "/v2/nvcf/assets", "foreign", json={"contentType": "text/plain"})
        assert asset[0] == 200
        assert (await ask(small, "PUT", asset[1]["uploadUrl"], "foreign", data=b"x" * 1_000_000))[0] == 200
        calling = asyncio.create_task(ask(small, "POST", other.pexec, "foreign", data=b"x"))
        await (await worker.pull()).answer()
        assert (await calling)[0] == 200
        path = f"/v2/nvcf/deployments/functions/{attacked.function_id}/versions/{attacked.id}"
        await small.call("DELETE", path)
