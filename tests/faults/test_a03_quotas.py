"""A3, A18: at a quota the account is told which one; other accounts notice nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.platform.gateways import Platform, running_platform
from tests.support.waiting import eventually

LIMITS = {
    "functions": 3,
    "keys": 12,
    "queued-requests": 5,
    "queued-bytes": 10_000,
    "assets": 2,
    "asset-bytes": 1000,
}
FLAGS = tuple(part for quota, limit in LIMITS.items() for part in ("--quota", f"{quota}={limit}"))


async def ask(
    platform: Platform, method: str, path: str, key: str, *, gateway: int = 0, **more: Any
) -> tuple[int, dict[str, Any]]:
    """Make a request; return status and JSON body."""
    url = path if path.startswith("http") else platform.gateways[gateway].url + path
    headers = {**platform.authorization(key), **more.pop("headers", {})}
    async with platform.session.request(method, url, headers=headers, **more) as response:
        return response.status, await response.json() if "json" in response.content_type else {}


def refused(answer: tuple[int, dict[str, Any]], status: int, quota: str) -> bool:
    """Return whether an answer is that of an exhausted quota."""
    return answer[0] == status and answer[1].get("quota") == quota and answer[1]["limit"] == LIMITS[quota]


async def test_a3_quotas_of_an_account_hold_at_every_gateway(tmp_path: Path) -> None:
    async with running_platform(tmp_path, gateways=2, flags=FLAGS) as platform:
        await _functions_and_queues(platform)
        await _assets(platform)
        body = {"name": "ours", "containerImage": "example/test:1"}
        assert (await ask(platform, "POST", "/v2/nvcf/functions", "foreign", json=body))[0] == 200
        asset = {"contentType": "text/plain"}
        assert (await ask(platform, "POST", "/v2/nvcf/assets", "foreign", json=asset))[0] == 200
        _, shown = await ask(platform, "GET", "/v2/nvcf/quotas", "admin", gateway=1)
        by_name = {each["quota"]: each for each in shown["quotas"]}
        assert by_name["functions"] == {"quota": "functions", "used": 3, "limit": 3}
        assert by_name["assets"]["used"] == 2


async def _functions_and_queues(platform: Platform) -> None:
    version = await platform.deployed_version("one")
    await platform.create_version("two")
    await platform.create_version("three")
    body = {"name": "four", "containerImage": "example/test:1"}
    assert refused(await ask(platform, "POST", "/v2/nvcf/functions", "admin", json=body), 507, "functions")
    path = f"/v2/nvcf/pexec/functions/{version.function_id}"
    kept = {"NVCF-POLL-SECONDS": "1"}
    assert refused(
        await ask(platform, "POST", path, "admin", data=b"x" * 12_000, headers=kept), 429, "queued-bytes"
    )
    for _ in range(5):
        assert (await ask(platform, "POST", path, "admin", data=b"x", headers=kept))[0] == 202

    async def elsewhere() -> bool:
        answer = await ask(platform, "POST", path, "admin", data=b"x", headers=kept, gateway=1)
        return refused(answer, 429, "queued-requests")

    await eventually(elsewhere, "the other gateway knows the queue")
    assert refused(
        await ask(platform, "POST", path, "admin", data=b"x", headers=kept), 429, "queued-requests"
    )


async def _assets(platform: Platform) -> None:
    asset = {"contentType": "text/plain"}
    urls = []
    for _ in range(2):
        status, made = await ask(platform, "POST", "/v2/nvcf/assets", "admin", json=asset)
        assert status == 200
        urls.append(made["uploadUrl"])

    async def third(gateway: int) -> bool:
        answer = await ask(platform, "POST", "/v2/nvcf/assets", "admin", json=asset, gateway=gateway)
        return refused(answer, 507, "assets")

    assert await third(0)
    await eventually(lambda: third(1), "the other gateway knows the assets")
    assert (await ask(platform, "PUT", urls[0], "admin", data=b"x" * 900))[0] == 200
    assert refused(await ask(platform, "PUT", urls[1], "admin", data=b"x" * 200), 507, "asset-bytes")
