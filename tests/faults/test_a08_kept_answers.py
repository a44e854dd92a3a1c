"""A8: a kept answer lives its time. What cannot be kept is refused before it runs, by account."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nvcf_gateway.quotas.limits import Quota
from tests.contract.gateway.test_polling import call
from tests.support.peers.worker import PeerWorker, peer_worker
from tests.support.platform.gateways import Gateway, Platform, Version, running_platform
from tests.support.waiting import eventually

FLAGS = ("--quota", "kept-answers=3", "--quota", "account-two:kept-bytes=100000")


async def answered(
    platform: Platform, worker: PeerWorker, version: Version, key: str, body: bytes, account: str = "admin"
) -> None:
    first = asyncio.create_task(call(platform, "POST", version.pexec, b"x", key=account, Idempotency_Key=key))
    await (await worker.pull()).answer(body)
    assert (await first).body == body


async def test_a_quota_refuses_and_drops_nothing(tmp_path: Path) -> None:
    async with running_platform(tmp_path, gateways=2, flags=FLAGS) as platform:
        version = await platform.deployed_version()
        async with peer_worker(platform, version) as worker:
            for number in range(3):
                await answered(platform, worker, version, f"k{number}", b"%d" % number)

            for gateway in platform.gateways:
                # The counts of one gateway reach the other one within seconds.
                async def knows(gateway: Gateway = gateway) -> bool:
                    shown = (await call(platform, "GET", "/v2/nvcf/quotas", gateway=gateway)).json
                    return {"quota": "kept-answers", "used": 3, "limit": 3} in shown["quotas"]

                await eventually(knows, "every gateway knows what is kept", interval=0.2)
                more = await call(
                    platform, "POST", version.pexec, b"x", gateway=gateway, Idempotency_Key="more"
                )
                assert (more.status, more.json["quota"]) == (429, Quota.KEPT_ANSWERS)
            for number in range(3):
                repeated = await call(platform, "POST", version.pexec, b"x", Idempotency_Key=f"k{number}")
                assert (repeated.status, repeated.body) == (200, b"%d" % number)
            plain = asyncio.create_task(call(platform, "POST", version.pexec, b"x"))
            await (await worker.pull()).answer(b"plain")
            assert (await plain).status == 200, "a call that promises nothing is not refused"
            # Nobody took it within its poll time, and its answer could not be kept.
            later = await call(platform, "POST", version.pexec, b"x", NVCF_POLL_SECONDS="1")
            assert (later.status, later.json["quota"]) == (429, Quota.KEPT_ANSWERS)
        await platform.queue_is_empty(version)
        await _others_notice_nothing(platform)


async def _others_notice_nothing(platform: Platform) -> None:
    """Another account has its own quota, here one of bytes."""
    body = {"name": "theirs", "containerImage": "example/test:1"}
    made = (await platform.call("POST", "/v2/nvcf/functions", body, key="foreign"))["function"]
    version = Version(made["id"], made["versionId"])
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    await platform.call("POST", path, {"deploymentSpecifications": [{}]}, key="foreign")
    async with peer_worker(platform, version) as worker:
        for number in range(2):
            await answered(platform, worker, version, f"k{number}", b"y" * 60_000, "foreign")
        full = await call(platform, "POST", version.pexec, b"x", key="foreign", Idempotency_Key="more")
        assert (full.status, full.json["quota"]) == (429, Quota.KEPT_BYTES)
