"""API keys, shared functions and worker tokens, on two gateways (protocol.md, section 4)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from nvcf_gateway.access.signing_keys import SigningKeys, create_key
from nvcf_gateway.access.worker_tokens import WorkerTokens
from nvcf_proto.ids import new_id
from tests.support.peers.worker import connect_once
from tests.support.platform.gateways import ACCOUNT, Gateway, Platform, Version, running_platform
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = "/v2/nvcf/keys"
# The issue's own bound.
IN_EFFECT_SECONDS = 1.0


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Two gateways on one broker, with a folder of signing keys."""
    directory = tmp_path_factory.mktemp("two")
    (directory / "signing.pem").mkdir()
    async with running_platform(directory, gateways=2) as running:
        yield running


def soon(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def made(platform: Platform, name: str, **fields: Any) -> dict[str, Any]:
    """A new key, known to the platform under `name`."""
    key = dict((await platform.call("POST", KEYS, {"scopes": ["invoke"], **fields}))["key"])
    platform.keys[name] = key["key"]
    return key


async def status(
    platform: Platform, gateway: Gateway, method: str, path: str, key: str, body: Any = None
) -> int:
    headers = {**platform.authorization(key), "NVCF-POLL-SECONDS": "1"}
    async with platform.session.request(method, gateway.url + path, headers=headers, json=body) as response:
        return response.status


async def becomes(platform: Platform, wanted: int, method: str, path: str, key: str, timeout: float) -> None:
    """Wait until every gateway answers so."""
    async with asyncio.timeout(timeout):
        for gateway in platform.gateways:
            while await status(platform, gateway, method, path, key) != wanted:
                await asyncio.sleep(0.01)


# --- keys


async def test_the_text_of_a_key_is_shown_once(two: Platform) -> None:
    expires = soon(3600)
    key = await made(two, "shown", scopes=["invoke", "list"], description="for a test", expiresAt=expires)
    assert key["key"].startswith(f"nvcf-{key['id']}-")
    assert (key["ncaId"], key["scopes"]) == (ACCOUNT, ["invoke", "list"])
    assert datetime.fromisoformat(key["expiresAt"]) - datetime.fromisoformat(expires) < timedelta(seconds=1)
    without = {name: value for name, value in key.items() if name != "key"}
    assert (await two.call("GET", f"{KEYS}/{key['id']}"))["key"] == without
    assert without in (await two.call("GET", KEYS))["keys"]
    for path in two.directory.rglob("*"):
        if path.is_file():
            assert key["key"].encode() not in path.read_bytes(), path
    await becomes(two, 200, "GET", "/v2/nvcf/functions", "shown", 5)


async def test_a_revoked_key_is_void_on_all_replicas_within_a_second(two: Platform) -> None:
    version = await two.deployed_version()
    key = await made(two, "revoked", scopes=["list"])
    path = f"/v2/nvcf/functions/{version.function_id}"
    await becomes(two, 200, "GET", path, "revoked", 5)
    await two.call("DELETE", f"{KEYS}/{key['id']}", expect=204)
    await becomes(two, 401, "GET", path, "revoked", IN_EFFECT_SECONDS)
    await two.call("GET", f"{KEYS}/{key['id']}", expect=404)
    await two.call("DELETE", f"{KEYS}/{key['id']}", expect=404)
    assert key["id"] not in {each["id"] for each in (await two.call("GET", KEYS))["keys"]}


async def test_a_revoked_key_of_the_first_hour_does_not_come_back(two: Platform) -> None:
    listed = two.keys["list"].split("-")[1]
    await two.call("DELETE", f"{KEYS}/{listed}", expect=204)
    third = await two.start_gateway()
    assert await status(two, third, "GET", "/v2/nvcf/functions", "list") == 401
    two.gateways.remove(third)
    third.child.kill()


async def test_an_expired_key_is_void(two: Platform) -> None:
    await made(two, "short", scopes=["list"], expiresAt=soon(2))
    assert await status(two, two.gateway, "GET", "/v2/nvcf/functions", "short") == 200
    await becomes(two, 401, "GET", "/v2/nvcf/functions", "short", 10)


async def test_a_key_may_be_limited_to_some_functions(two: Platform) -> None:
    mine, other = await two.deployed_version(), await two.deployed_version()
    scopes = ["invoke", "list", "manage", "deploy", "admin"]
    await made(two, "narrow", scopes=scopes, functionIds=[mine.function_id])
    gateway = two.gateway
    for version, expected in ((mine, 202), (other, 403)):
        assert await status(two, gateway, "POST", version.pexec, "narrow", {}) == expected
        path = f"/v2/nvcf/functions/{version.function_id}"
        assert await status(two, gateway, "GET", path, "narrow") == (200 if version is mine else 403)
        deployment = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
        assert await status(two, gateway, "GET", deployment, "narrow") == (200 if version is mine else 403)
    shown = (await two.call("GET", "/v2/nvcf/functions", key="narrow"))["functions"]
    assert [each["versionId"] for each in shown] == [mine.id]
    creation = {"name": "more", "containerImage": "example/test:1"}
    assert await status(two, gateway, "POST", "/v2/nvcf/functions", "narrow", creation) == 403
    assert await status(two, gateway, "POST", KEYS, "narrow", {"scopes": ["invoke"]}) == 403
    assert await status(two, gateway, "GET", KEYS, "narrow") == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["invoke", "fly"]}, "scopes[1]"),
        ({"scopes": ["invoke"], "expiresAt": "tomorrow"}, "expiresAt"),
        ({"scopes": ["invoke"], "expiresAt": "2020-01-01T00:00:00Z"}, "expiresAt"),
        ({"scopes": ["invoke"], "expiresAt": "2999-01-01T00:00:00"}, "expiresAt"),
        ({"scopes": ["invoke"], "functionIds": []}, "functionIds"),
        ({"scopes": ["invoke"], "functionIds": ["x"]}, "functionIds[0]"),
        ({"scopes": ["invoke"], "name": "x"}, "name"),
    ],
)
async def test_a_bad_key_names_the_field(two: Platform, body: dict[str, Any], field: str) -> None:
    assert (await two.call("POST", KEYS, body, expect=400))["field"] == field


async def test_only_admins_manage_keys_and_only_those_of_their_account(two: Platform) -> None:
    key = await made(two, "plain")
    for other in ("invoke", "agent", "plain"):
        await two.call("POST", KEYS, {"scopes": ["invoke"]}, key=other, expect=403)
        await two.call("GET", KEYS, key=other, expect=403)
        await two.call("DELETE", f"{KEYS}/{key['id']}", key=other, expect=403)
    await two.call("DELETE", f"{KEYS}/{key['id']}", key="foreign", expect=404)
    assert all(
        each["ncaId"] == "account-two" for each in (await two.call("GET", KEYS, key="foreign"))["keys"]
    )
    for reach in ("agent", "service"):
        await two.call("POST", KEYS, {"scopes": [reach]}, expect=403)
    await two.call("POST", KEYS, {"scopes": ["invoke"], "ncaId": "account-two"}, expect=403)


# --- shared functions


async def test_a_shared_function_may_be_invoked_by_the_other_account_and_nothing_more(two: Platform) -> None:
    version = await two.deployed_version()
    base = f"/v2/nvcf/functions/{version.function_id}"
    path = f"{base}/authorizations"
    assert await status(two, two.gateway, "POST", version.pexec, "foreign", {}) == 404
    parties = {"authorizedParties": [{"ncaId": "account-two"}, {"ncaId": "account-two"}]}
    shared = (await two.call("PUT", path, parties))["function"]
    assert shared["authorizedParties"] == [{"ncaId": "account-two"}]
    assert (await two.call("GET", path))["function"] == shared
    await becomes(two, 202, "POST", version.pexec, "foreign", 10)
    later = (await two.call("POST", f"{base}/versions", {"containerImage": "example/test:2"}))["function"]
    inherited = Version(version.function_id, later["versionId"])
    await two.deploy(inherited)
    await becomes(two, 202, "POST", inherited.pexec, "foreign", 10)
    for method, forbidden in (
        ("GET", base),
        ("DELETE", base),
        ("GET", path),
        ("PUT", path),
        ("DELETE", path),
        ("GET", f"{base}/versions/{version.id}"),
    ):
        assert await status(two, two.gateway, method, forbidden, "foreign", {}) == 404, forbidden
    assert (await two.call("GET", "/v2/nvcf/functions", key="foreign"))["functions"] == []
    assert (await two.call("DELETE", path))["function"]["authorizedParties"] == []
    await becomes(two, 404, "POST", version.pexec, "foreign", IN_EFFECT_SECONDS * 10)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "authorizedParties"),
        ({"authorizedParties": ["account-two"]}, "authorizedParties[0]"),
        ({"authorizedParties": [{"ncaId": ""}]}, "authorizedParties[0].ncaId"),
        ({"authorizedParties": [{"ncaId": "a", "x": 1}]}, "authorizedParties[0].x"),
    ],
)
async def test_bad_authorizations_name_the_field(two: Platform, body: dict[str, Any], field: str) -> None:
    version = await two.create_version()
    path = f"/v2/nvcf/functions/{version.function_id}/authorizations"
    assert (await two.call("PUT", path, body, expect=400))["field"] == field


# --- worker tokens


async def test_signing_keys_are_rotated_without_a_token_lost(two: Platform) -> None:
    version = await two.deployed_version()
    instance = new_id()
    folder = two.directory / "signing.pem"
    old_token = await two.worker_token(version, instance)
    old_key = SigningKeys(folder).ring.signer.key_id

    async def connect(gateway: Gateway, token: str) -> str:
        answer = await connect_once(gateway.grpc, token, instance, version.function_id, version.id)
        return answer.nvcfWorkerToken

    fresh = folder / "later.pem"
    create_key(folder / "later.new")
    os.utime(folder / "later.new", (time.time() + 5, time.time() + 5))
    (folder / "later.new").rename(fresh)
    new_key = SigningKeys(folder).ring.signer.key_id
    assert new_key != old_key
    # At once, though perhaps no gateway has looked: signed by the newest key, and good everywhere.
    foreseen, _ = WorkerTokens(SigningKeys(folder)).issue(
        function_id=version.function_id,
        version_id=version.id,
        instance_id=instance,
        nca_id=ACCOUNT,
        now=time.time(),
    )
    for gateway in two.gateways:
        await connect(gateway, foreseen)
        await connect(gateway, old_token)

    async def signer() -> str:
        import jwt

        return str(jwt.get_unverified_header(await connect(two.gateway, foreseen))["kid"])

    async with asyncio.timeout(10):
        while await signer() != new_key:
            await asyncio.sleep(0.05)
    (folder / "signing.pem").unlink()
    for gateway in two.gateways:
        await connect(gateway, await two.worker_token(version, instance))
        async with asyncio.timeout(10):
            with contextlib.suppress(Exception):
                while True:
                    await connect(gateway, old_token)
                    await asyncio.sleep(0.05)
    # A file that cannot be read leaves everything as it is.
    good = await two.worker_token(version, instance)
    (folder / "broken.pem").write_text("no key")
    for gateway in two.gateways:
        await eventually(lambda of=gateway: "the previous keys stay in use" in of.child.text(), "seen")  # type: ignore[misc]
        await connect(gateway, good)
    (folder / "broken.pem").unlink()
