"""Rate limits as callers and services meet them, on one replica and on four.

See protocol.md, sections 1.5 and 4.12.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.platform.gateways import ACCOUNT, Platform
from tests.support.platform.rate_limits import limited, limiter, path_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def call(
    platform: Platform, path: str, *, key: str = "admin", **headers: str
) -> tuple[int, dict[str, str], dict[str, Any]]:
    sent = {**platform.authorization(key), "NVCF-POLL-SECONDS": "1", **headers}
    async with platform.session.post(platform.gateway.url + path, json={}, headers=sent) as response:
        problem = await response.json(content_type=None) if response.status == 429 else {}
        return response.status, {name.lower(): value for name, value in response.headers.items()}, problem


# --- management


async def test_a_policy_is_kept_shown_and_taken_away(platform: Platform) -> None:
    version = await platform.create_version()
    policy = {
        "rate": "100-S,5000-H",
        "excludedNcaIds": ["account-x"],
        "perNcaIdConfigs": [{"ncaId": "account-two", "rate": "5-M"}],
        "perUserRate": "10-S",
        "syncCheck": True,
    }
    await platform.call("GET", path_of(version), expect=404)
    put = await platform.call("PUT", path_of(version), policy)
    assert put == await platform.call("GET", path_of(version))
    assert put == {"functionId": version.function_id, "functionVersionId": version.id, "config": policy}
    shown = await platform.call("GET", f"/v2/nvcf/functions/{version.function_id}/versions/{version.id}")
    assert shown["function"]["rateLimit"].items() >= policy.items()
    await platform.call("DELETE", path_of(version), expect=204)
    await platform.call("GET", path_of(version), expect=404)
    await platform.call("DELETE", path_of(version), expect=204)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rate": "ten"}, "rate"),
        ({"rate": 10}, "rate"),
        ({"rate": "10-W"}, "rate"),
        ({"perUserRate": "-1-S"}, "perUserRate"),
        ({"excludedNcaIds": ["a", ""]}, "excludedNcaIds[1]"),
        ({"perNcaIdConfigs": [{"ncaId": "a"}]}, "perNcaIdConfigs[0].rate"),
        ({"syncCheck": "yes"}, "syncCheck"),
        ({"rates": "10-S"}, "rates"),
    ],
)
async def test_a_bad_policy_names_the_field(platform: Platform, body: dict[str, Any], field: str) -> None:
    version = await platform.create_version()
    assert (await platform.call("PUT", path_of(version), body, expect=400))["field"] == field


async def test_only_owners_who_may_manage_set_limits(platform: Platform) -> None:
    version = await platform.create_version()
    for key, status in (("invoke", 403), ("list", 403), ("agent", 403), ("foreign", 404)):
        await platform.call("PUT", path_of(version), {"rate": "1-S"}, key=key, expect=status)
        await platform.call("DELETE", path_of(version), key=key, expect=status)
    await platform.call("GET", path_of(version), key="list", expect=404)


# --- callers


async def test_a_call_beyond_the_limit_is_429_and_learns_when_to_retry(platform: Platform) -> None:
    for path, headers in (
        (lambda version: version.pexec, {}),
        (lambda version: version.exec, {}),
        (lambda version: "/any/path", "pass-through"),
    ):
        version = await limited(platform, rate="0-H")
        extra = {"function-id": version.function_id} if headers else {}
        status, answer, problem = await call(platform, path(version), **extra)
        assert status == 429
        assert int(answer["retry-after"]) == 3600
        assert answer["ratelimit-policy"] == '"account-hour";q=0;w=3600'
        assert answer["ratelimit"] == '"account-hour";r=0;t=3600'
        assert answer["content-type"] == "application/problem+json"
        assert problem["violated-policies"] == ["account-hour"]
        assert problem["status"] == 429


async def test_a_session_beyond_the_limit_is_refused_in_its_callers_language(platform: Platform) -> None:
    gateway = await platform.start_gateway("--sessions", "127.0.0.1:0")
    version = await limited(platform, rate="0-M")
    headers = {**platform.authorization(), "function-id": version.function_id}
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://{gateway.sessions}/", additional_headers=headers)
    assert refused.value.response.status_code == 429
    assert refused.value.response.headers["Retry-After"] == "60"
    assert refused.value.response.headers["RateLimit"] == '"account-minute";r=0;t=60'
    async with grpc.aio.insecure_channel(gateway.sessions) as channel:
        method: Any = channel.unary_unary("/any.Service/Method")
        metadata = [(name.lower(), value) for name, value in headers.items()]
        found = await code(method(b"", metadata=metadata, timeout=20))
    assert found is grpc.StatusCode.RESOURCE_EXHAUSTED
    platform.gateways.remove(gateway)
    gateway.child.kill()


async def test_no_more_and_no_fewer_calls_pass_at_once_than_the_limit(platform: Platform) -> None:
    version = await limited(platform, rate="13-H")
    answers = await asyncio.gather(*(call(platform, version.pexec) for _ in range(40)))
    assert Counter(status for status, _, _ in answers) == {429: 27, 202: 13}


async def test_after_the_time_in_retry_after_calls_pass_again(platform: Platform) -> None:
    version = await limited(platform, rate="2-S")
    assert (await call(platform, version.pexec))[0] == 202
    await asyncio.gather(*(call(platform, version.pexec) for _ in range(3)))
    for _ in range(20):
        status, answer, _ = await call(platform, version.pexec)
        if status == 202:
            return
        await asyncio.sleep(int(answer["retry-after"]))
    raise AssertionError("refused for ever")


async def test_users_accounts_and_exclusions(platform: Platform) -> None:
    version = await limited(
        platform, rate="2-H", perUserRate="1-H", perNcaIdConfigs=[{"ncaId": "own", "rate": "3-D"}],
        excludedNcaIds=["free"],
    )  # fmt: skip
    async with limiter(platform.gateway, platform) as ask:

        async def allowed(account: str, *subjects: str) -> list[bool]:
            return [await ask(version, account, subject) for subject in subjects]

        assert await allowed("a", "u", "u", "v", "w", "") == [True, False, True, False, False]
        assert await allowed("b", "u", "u") == [True, False]
        assert await allowed("own", "", "", "", "") == [True, True, True, False]
        assert await allowed("free", "u", "u", "v", "", "") == [True, False, True, True, True]


# --- services


async def code(awaitable: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code()


async def test_services_read_policies_and_are_refused_without_right(platform: Platform) -> None:
    version = await limited(platform, rate="7-S", excludedNcaIds=["x"], perUserRate="3-M")
    unlimited = await platform.deployed_version()
    admin, foreign, invoke = (
        (("authorization", platform.authorization(key)["Authorization"]),)
        for key in ("admin", "foreign", "invoke")
    )
    async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
        policies: nvcf_pb2_grpc.RateLimitAsyncStub = nvcf_pb2_grpc.RateLimitStub(channel)

        def policy(function_id: str, version_id: str, metadata: Any) -> Any:
            request = nvcf_pb2.RateLimitPolicyRequest(functionId=function_id, functionVersionId=version_id)
            return policies.RateLimitPolicy(request, metadata=metadata, timeout=10)

        config = (await policy(version.function_id, version.id, admin)).config
        assert (config.rate, list(config.excludedNcaIds), config.perUserRate) == ("7-S", ["x"], "3-M")
        assert not config.perNcaIdConfigs
        function = version.function_id
        assert await code(policy(function, version.id, ())) is grpc.StatusCode.UNAUTHENTICATED
        assert await code(policy(function, version.id, invoke)) is grpc.StatusCode.PERMISSION_DENIED
        assert await code(policy(function, version.id, foreign)) is grpc.StatusCode.NOT_FOUND
        assert await code(policy(function, "x", admin)) is grpc.StatusCode.INVALID_ARGUMENT
        assert await code(policy(function, new_id(), admin)) is grpc.StatusCode.NOT_FOUND
        found = await code(policy(unlimited.function_id, unlimited.id, admin))
        assert found is grpc.StatusCode.NOT_FOUND
    async with limiter(platform.gateway, platform) as ask:
        assert await ask(unlimited)
        assert await ask(dataclasses.replace(version, id=new_id())), "unknown ones pass"
        assert await code(ask(version, "")) is grpc.StatusCode.INVALID_ARGUMENT


async def test_services_authorise_clients(platform: Platform) -> None:
    version = await limited(platform, rate="7-S", syncCheck=True)
    second = await platform.create_version()
    admin = (("authorization", platform.authorization()["Authorization"]),)
    async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
        invocation: nvcf_pb2_grpc.InvocationAsyncStub = nvcf_pb2_grpc.InvocationStub(channel)
        proxy: nvcf_pb2_grpc.ProxyAsyncStub = nvcf_pb2_grpc.ProxyStub(channel)

        def invoke(token: str, function_id: str, **more: Any) -> Any:
            request = nvcf_pb2.ClientInvokeRequest(
                clientAuthorizationToken=token, functionId=function_id, **more
            )
            return invocation.AuthClientInvocation(request, metadata=admin, timeout=10)

        token = platform.keys["invoke"]
        for written in (token, f"Bearer {token}"):
            answer = await invoke(written, version.function_id)
            assert answer.functionId == version.function_id
            assert (answer.clientNcaId, answer.clientAuthSubject[:7]) == (ACCOUNT, "apikey:")
            (only,) = answer.functionVersions
            assert only.functionVersionId == version.id
            assert (only.defaultInvocationPath, only.hasRateLimit, only.syncCheck) == ("/", True, True)
        named = await invoke(token, version.function_id, functionVersionId=version.id, targetNcaId=ACCOUNT)
        assert len(named.functionVersions) == 1
        assert await code(invoke("", version.function_id)) is grpc.StatusCode.UNAUTHENTICATED
        assert await code(invoke("x", version.function_id)) is grpc.StatusCode.UNAUTHENTICATED
        assert await code(invoke(token, "x")) is grpc.StatusCode.INVALID_ARGUMENT
        assert await code(invoke(token, new_id())) is grpc.StatusCode.NOT_FOUND
        assert await code(invoke(token, second.function_id)) is grpc.StatusCode.NOT_FOUND
        foreign = platform.keys["foreign"]
        assert await code(invoke(foreign, version.function_id)) is grpc.StatusCode.NOT_FOUND
        other = invoke(token, version.function_id, targetNcaId="account-two")
        assert await code(other) is grpc.StatusCode.NOT_FOUND
        session = await proxy.AuthStatefulWork(
            nvcf_pb2.ProxyAuthRequest(clientAuthorizationToken=token, functionId=version.function_id),
            metadata=admin,
            timeout=10,
        )
        (only_one,) = session.functionVersions
        assert (only_one.functionVersionId, only_one.hasRateLimit) == (version.id, True)
        assert not only_one.HasField("backendType")


# --- four replicas


async def test_connection_errors_are_no_part_of_it(platform: Platform) -> None:
    version = await limited(platform, rate="1-H")
    with contextlib.suppress(aiohttp.ClientError):
        await call(platform, version.pexec)
    assert (await call(platform, version.pexec))[0] == 429
