"""The dashboard: its files, its tickets and sessions, and the statistics it reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nvcf_gateway.access.signed_tokens import DashboardTokens, TokenKind
from nvcf_gateway.access.signing_keys import SigningKeys
from tests.contract.gateway.test_polling import call
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")
SESSIONS = "/v2/nvcf/dashboard/sessions"
TICKETS = "/v2/nvcf/dashboard/tickets"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Two gateways."""
    async with running_platform(tmp_path_factory.mktemp("two"), gateways=2) as running:
        yield running


async def status(platform: Platform, path: str, token: str, method: str = "GET") -> int:
    headers = {"Authorization": f"Bearer {token}"}
    async with platform.session.request(method, platform.gateway.url + path, headers=headers) as response:
        return response.status


async def opened(platform: Platform, token: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    async with platform.session.post(platform.gateway.url + SESSIONS, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Cache-Control"] == "no-store"
        return dict(await response.json())


@pytest.mark.parametrize("file", ["", "index.html", "app.js", "style.css", "icon.svg"])
async def test_the_page_loads_nothing_from_elsewhere(platform: Platform, file: str) -> None:
    async with platform.session.get(f"{platform.gateway.url}/dashboard/{file}") as response:
        text = await response.text()
        assert response.status == 200
        policy = response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        tag = response.headers["ETag"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    assert "innerHTML" not in text
    headers = {"If-None-Match": tag}
    async with platform.session.get(f"{platform.gateway.url}/dashboard/{file}", headers=headers) as response:
        assert response.status == 304


async def test_the_page_is_found_without_the_slash_and_other_files_are_not(platform: Platform) -> None:
    async with platform.session.get(f"{platform.gateway.url}/dashboard", allow_redirects=True) as response:
        assert response.url.path == "/dashboard/"
        assert response.status == 200
    for name in ("routes.py", "..%2froutes.py", "%2e%2e", "none.js"):
        async with platform.session.get(f"{platform.gateway.url}/dashboard/{name}") as response:
            assert response.status == 404


async def test_a_ticket_opens_one_session_after_the_other_that_can_only_read(platform: Platform) -> None:
    version = await platform.deployed_version()
    ticket = (await platform.call("POST", TICKETS))["ticket"]
    assert platform.keys["admin"] not in ticket
    session = await opened(platform, ticket)
    token = session["session"]
    assert session["ncaId"] == "account-one"
    for path in ("functions", "instances", "clusters", "events", "figures"):
        assert await status(platform, f"/v2/nvcf/{path}", token) == 200
    assert await status(platform, version.pexec, token, "POST") == 403
    assert await status(platform, f"/v2/nvcf/functions/{version.function_id}", token, "DELETE") == 403
    assert await status(platform, "/v2/nvcf/keys", token) == 403
    assert await status(platform, TICKETS, token, "POST") == 403
    assert await status(platform, SESSIONS, token, "POST") == 403
    assert await status(platform, "/v2/nvcf/functions", ticket) == 401


async def test_a_session_ends_with_its_key(platform: Platform) -> None:
    made = (await platform.call("POST", "/v2/nvcf/keys", {"scopes": ["list"]}))["key"]
    token = (await opened(platform, made["key"]))["session"]
    assert await status(platform, "/v2/nvcf/functions", token) == 200
    await platform.call("DELETE", f"/v2/nvcf/keys/{made['id']}", expect=204)
    async with asyncio.timeout(10):
        while await status(platform, "/v2/nvcf/functions", token) != 401:
            await asyncio.sleep(0.02)


async def test_a_session_sees_no_more_than_its_key(platform: Platform) -> None:
    mine, other = await platform.deployed_version(), await platform.deployed_version()
    wish = {"scopes": ["list"], "functionIds": [mine.function_id]}
    key = (await platform.call("POST", "/v2/nvcf/keys", wish))["key"]["key"]
    platform.keys["narrow-session"] = (await opened(platform, key))["session"]
    shown = await platform.call("GET", "/v2/nvcf/figures", key="narrow-session")
    assert [each["functionVersionId"] for each in shown["versions"]] == [mine.id]
    one = await platform.call("GET", f"/v2/nvcf/figures?functionVersionId={other.id}", key="narrow-session")
    assert one["versions"] == []


async def test_expired_and_invalid_tokens_are_refused(platform: Platform, tmp_path: Path) -> None:
    key_id = platform.keys["admin"].split("-")[1]
    here = DashboardTokens(SigningKeys(platform.directory / "signing.pem").ring.mac_keys)
    there = DashboardTokens(lambda: (b"x" * 32,))
    over = here.make(TokenKind.TICKET, key_id, time.time() - 200)[0]
    assert await status(platform, SESSIONS, over, "POST") == 401
    assert (
        await status(platform, SESSIONS, there.make(TokenKind.TICKET, key_id, time.time())[0], "POST") == 401
    )
    assert (
        await status(platform, SESSIONS, here.make(TokenKind.TICKET, "0" * 12, time.time())[0], "POST") == 401
    )
    assert (
        await status(platform, SESSIONS, here.make(TokenKind.TICKET, key_id, time.time())[0], "POST") == 200
    )
    assert await status(platform, TICKETS, platform.keys["invoke"], "POST") == 403
    assert await status(platform, "/v2/nvcf/figures", platform.keys["invoke"]) == 403
    assert await status(platform, "/v2/nvcf/figures?functionVersionId=x", platform.keys["list"]) == 400


async def test_a_gateway_may_serve_no_page(platform: Platform) -> None:
    bare = await platform.start_gateway("--no-dashboard")
    platform.gateways.remove(bare)
    try:
        async with platform.session.get(f"{bare.url}/dashboard/") as response:
            assert response.status == 404
        headers = platform.authorization()
        async with platform.session.post(bare.url + TICKETS, headers=headers) as response:
            assert response.status == 404
        async with platform.session.get(f"{bare.url}/v2/nvcf/figures", headers=headers) as response:
            assert response.status == 200
    finally:
        bare.child.kill()


async def figures(platform: Platform, version: Version) -> dict[str, Any]:
    shown = await platform.call("GET", f"/v2/nvcf/figures?functionVersionId={version.id}")
    return {**shown, **shown["versions"][0]}


async def test_statistics_hold_queue_waits_and_latency_of_all_gateways(two: Platform) -> None:
    version = await two.deployed_version()
    calls = [
        asyncio.create_task(call(two, "POST", version.pexec, b"x", gateway=gateway))
        for gateway in (*two.gateways, two.gateway)
    ]
    everybody = {"answered": 2, "known": 2}

    async def all_figures(queue: str, count: int, waiting: int) -> dict[str, Any]:
        # A gateway that gets no processor time does not answer in time, and its part is missing then.
        async with asyncio.timeout(60):
            while True:
                now = await figures(two, version)
                if (now["gateways"], now["queue"][queue], now["waiting"]) == (everybody, count, waiting):
                    return now
                await asyncio.sleep(0.05)

    now = await all_figures("queued", 3, 3)
    assert now["latency"] is None
    assert now["queue"]["oldestSeconds"] >= 0
    async with peer_worker(two, version) as worker:
        works = [await worker.pull() for _ in range(3)]
        await all_figures("inFlight", 3, 3)
        for work in works:
            await work.answer()
        await asyncio.gather(*calls)
    now = await all_figures("inFlight", 0, 0)
    assert now["answersPerSecond"] > 0
    assert now["failuresPerSecond"] == 0
    assert now["latency"]["p50"] <= now["latency"]["p99"]


async def test_responses_with_status_5xx_count_as_failures(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(call(platform, "POST", version.pexec, b"x"))
        await (await worker.pull()).answer(status="500 Oops")
        await task
    async with asyncio.timeout(20):
        while not (now := await figures(platform, version))["answersPerSecond"]:
            await asyncio.sleep(0.05)
    assert now["failuresPerSecond"] == now["answersPerSecond"]


async def test_other_accounts_functions_are_not_in_the_statistics(platform: Platform) -> None:
    version = await platform.deployed_version()
    shown = await platform.call("GET", "/v2/nvcf/figures", key="foreign")
    assert version.id not in {each["functionVersionId"] for each in shown["versions"]}
