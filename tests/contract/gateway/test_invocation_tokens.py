"""Tokens that invoke some functions for a while; clients; where an asset itself is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from nvcf_proto.ids import new_id
from tests.support.platform.gateways import ACCOUNT, Platform, Version, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = "/v2/nvcf/tokens/functions"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path_factory.mktemp("tokens")) as running:
        yield running


async def status(platform: Platform, version: Version, token: str, path: str | None = None) -> int:
    """Call a version that nobody serves; 202 means that the call is queued."""
    headers = {"Authorization": f"Bearer {token}", "NVCF-POLL-SECONDS": "1"}
    url = platform.gateway.url + (path or version.pexec)
    async with platform.session.post(url, data=b"{}", headers=headers) as response:
        return response.status


async def second_version(platform: Platform, first: Version) -> Version:
    path = f"/v2/nvcf/functions/{first.function_id}/versions"
    made = (await platform.call("POST", path, {"containerImage": "x"}))["function"]
    version = Version(made["id"], made["versionId"])
    await platform.deploy(version)
    return version


async def test_a_token_invokes_its_function_and_nothing_else(platform: Platform) -> None:
    one, other = await platform.deployed_version(), await platform.deployed_version()
    made = await platform.call("POST", f"{TOKENS}/{one.function_id}", {"clientId": "shop"}, key="invoke")
    token = made["access_token"]
    assert 890 <= made["expires_in"] <= 900
    assert await status(platform, one, token) == 202
    assert await status(platform, other, token) == 403
    platform.keys["token"] = token
    await platform.call("GET", "/v2/nvcf/functions", key="token", expect=403)
    # A token of a token lives no longer than it.
    again = await platform.call("POST", f"{TOKENS}/{one.function_id}", {"clientId": "x"}, key="token")
    assert again["expires_in"] <= made["expires_in"]
    await platform.call("POST", f"{TOKENS}/{other.function_id}", {"clientId": "x"}, key="token", expect=403)


async def test_a_token_counts_as_a_key_and_outlives_the_key_that_made_it(platform: Platform) -> None:
    version = await platform.deployed_version()
    key = (await platform.call("POST", "/v2/nvcf/keys", {"scopes": ["invoke"]}))["key"]
    platform.keys["maker"] = key["key"]
    path, body = f"{TOKENS}/{version.function_id}", {"clientId": "shop"}
    token = (await platform.call("POST", path, body, key="maker"))["access_token"]
    await platform.call("DELETE", f"/v2/nvcf/keys/{key['id']}", expect=204)
    await platform.call("POST", path, body, key="maker", expect=401)
    assert await status(platform, version, token) == 202
    listed = (await platform.call("GET", "/v2/nvcf/keys"))["keys"]
    assert token.split("-")[1] in {each["id"] for each in listed}


async def test_a_token_for_a_version(platform: Platform) -> None:
    one = await platform.deployed_version()
    two = await second_version(platform, one)
    path = f"{TOKENS}/{one.function_id}/versions/{one.id}"
    token = (await platform.call("POST", path, {"clientId": "shop"}))["access_token"]
    assert await status(platform, one, token) == 202
    assert await status(platform, two, token) == 403
    whole = f"/v2/nvcf/pexec/functions/{one.function_id}"
    assert await status(platform, one, token, whole) == 202, "the version that it may call is taken"
    platform.keys["token"] = token
    for tried in (f"{TOKENS}/{one.function_id}", f"{TOKENS}/{one.function_id}/versions/{two.id}"):
        await platform.call("POST", tried, {"clientId": "x"}, key="token", expect=403)


async def test_a_token_for_several(platform: Platform) -> None:
    one, two, three = [await platform.deployed_version() for _ in range(3)]
    named = [{"functionId": one.function_id}, {"functionId": two.function_id, "functionVersionId": two.id}]
    body = {"clientId": "shop", "functions": named}
    token = (await platform.call("POST", TOKENS, body))["access_token"]
    assert [await status(platform, each, token) for each in (one, two, three)] == [202, 202, 403]


async def test_whom_tokens_are_refused(platform: Platform) -> None:
    version = await platform.deployed_version()
    path, body = f"{TOKENS}/{version.function_id}", {"clientId": "shop"}
    await platform.call("POST", path, body, key="foreign", expect=404)
    await platform.call("POST", path, body, key="list", expect=403)
    await platform.call("POST", path, {}, expect=400)
    await platform.call("POST", f"{TOKENS}/{new_id()}", body, expect=404)
    await platform.call("POST", f"{path}/versions/{new_id()}", body, expect=404)
    many = [{"functionId": version.function_id}] * 5
    await platform.call("POST", TOKENS, {"clientId": "x", "functions": many}, expect=400)


async def test_a_client_is_shown_to_its_account(platform: Platform) -> None:
    key_id = platform.keys["list"].split("-")[1]
    shown = await platform.call("GET", f"/v2/nvcf/clients/{key_id}")
    assert shown == {"client": {"clientId": key_id, "ncaId": ACCOUNT, "name": ACCOUNT}}
    await platform.call("GET", f"/v2/nvcf/clients/{key_id}", key="foreign", expect=404)
    await platform.call("GET", f"/v2/nvcf/clients/{key_id}", key="list", expect=403)
    await platform.call("GET", f"/v2/nvcf/clients/{'0' * 12}", expect=404)


async def test_an_asset_redirects_to_its_bytes(platform: Platform) -> None:
    made = await platform.call("POST", "/v2/nvcf/assets", {"contentType": "text/plain"}, key="invoke")
    async with platform.session.put(
        made["uploadUrl"], data=b"bytes", headers={"Content-Type": "text/plain"}
    ) as response:
        assert response.status == 200
    url = f"{platform.gateway.url}/v2/nvcf/assets/{made['assetId']}/content-redirect"
    async with platform.session.get(
        url, headers=platform.authorization("invoke"), allow_redirects=False
    ) as response:
        assert response.status == 302
        where = response.headers["Location"]
    async with platform.session.get(where) as response:
        assert (response.status, await response.read()) == (200, b"bytes")
    async with platform.session.get(url, headers=platform.authorization("foreign")) as response:
        assert response.status == 404
