"""Who reads and changes secrets over HTTP, and who does not."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import grpc
import pytest

from nvcf_broker.jetstream import JetStream
from nvcf_gateway.access.signing_keys import SigningKeys
from nvcf_gateway.access.worker_tokens import WorkerTokens
from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from nvcf_proto.secrets import function_secrets_path, telemetry_secrets_path
from nvcf_proto.tokens import WorkerClaims
from tests.support.platform.gateways import ACCOUNT, Platform
from tests.support.platform.secrets import (
    BASE,
    CREDENTIALS,
    VALUE,
    agent_token,
    ask_for_token,
    end_instances,
    ess_path,
    put_secrets,
    read_secrets,
    secrets_path,
    started,
    worker_token,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_another_account_sees_and_changes_nothing(platform: Platform) -> None:
    version = await platform.deployed_version(secrets=[{"name": "A", "value": VALUE}])
    await platform.call("PUT", f"/v2/nvcf/functions/{version.function_id}/authorizations",
                        {"authorizedParties": [{"ncaId": "account-two"}]})  # fmt: skip
    for method in ("GET", "DELETE"):
        await platform.call(method, secrets_path(version), key="foreign", expect=404)
        if method == "GET":
            await platform.call(method, f"{BASE}/functions/{version.function_id}", key="foreign", expect=404)
    await platform.call("DELETE", f"{secrets_path(version)}/names/A", key="foreign", expect=404)
    await put_secrets(platform, version, A="stolen", key="foreign", expect=404)
    for key in ("invoke", "list"):
        await put_secrets(platform, version, A="stolen", key=key, expect=403)
        await platform.call("DELETE", secrets_path(version), key=key, expect=403)
    await platform.call("GET", secrets_path(version), key="invoke", expect=403)
    body = {"instanceId": new_id(), "functionId": version.function_id, "functionVersionId": version.id}
    for key in ("foreign", "admin", "invoke"):
        await platform.call("POST", CREDENTIALS, body, key=key, expect=403)
    assert (await read_secrets(platform, await agent_token(platform, version), ess_path(version)))[1] == {
        "data": {"A": VALUE}
    }


async def test_an_agent_gets_tokens_for_instances_of_its_own_cluster_only(platform: Platform) -> None:
    version = await platform.deployed_version(secrets=[{"name": "A", "value": VALUE}])
    await agent_token(platform, version)
    theirs = await started(platform, version)
    await platform.register_cluster("another")
    status, answer = await ask_for_token(platform, theirs, "another")
    assert status == 404
    assert "token" not in answer


async def test_a_worker_reads_the_secrets_of_its_own_version_only(platform: Platform) -> None:
    mine = await platform.deployed_version(secrets=[{"name": "A", "value": "mine"}])
    others = await platform.deployed_version(secrets=[{"name": "A", "value": VALUE}])
    own = await worker_token(platform, mine)
    assert (await read_secrets(platform, own, ess_path(mine)))[1] == {"data": {"A": "mine"}}
    wrong = [
        ess_path(others),
        function_secrets_path(mine.function_id, others.id),
        function_secrets_path(others.function_id, mine.id),
        telemetry_secrets_path(ACCOUNT, new_id()),
    ]
    for where in wrong:
        status, answer, _ = await read_secrets(platform, own, where)
        assert status == 403, where
        assert VALUE not in json.dumps(answer)
    for where in (
        f"{ess_path(mine)}/../../../{ess_path(others)}",
        f"functions/{mine.function_id}/versions/..%2f..%2f{ess_path(others).replace('/', '%2f')}",
        f"functions/{mine.function_id}/versions/{mine.id}%00",
        f"{ess_path(mine)}/",
        f"/{ess_path(mine)}",
        "functions",
        "",
    ):
        # As raw text: a client would tidy it up.
        status, text = await raw_get(platform, f"/v1/{where}", own)
        assert status in (400, 404), (where, status, text)
        assert VALUE not in text
        assert "mine" not in text


async def raw_get(platform: Platform, target: str, token: str) -> tuple[int, str]:
    host, port = platform.gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"GET {target} HTTP/1.1", "Host: x", "Connection: close"]
    lines += [f"X-ESS-Token: {token}", "X-ESS-Namespace: nvcf", "", ""]
    writer.write("\r\n".join(lines).encode())
    text = (await asyncio.wait_for(reader.read(), 30)).decode()
    writer.close()
    return int(text.split(" ", 2)[1]), text


async def test_forged_expired_and_other_tokens_read_nothing(platform: Platform) -> None:
    version = await platform.deployed_version(secrets=[{"name": "A", "value": VALUE}])
    own = await agent_token(platform, version)
    head, claims, signature = own.split(".")

    def altered(**changes: Any) -> str:
        members = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        text = json.dumps({**members, **changes}).encode()
        return f"{head}.{base64.urlsafe_b64encode(text).rstrip(b'=').decode()}.{signature}"

    real = WorkerTokens(SigningKeys(platform.directory / "signing.pem"))
    foreign = WorkerTokens(SigningKeys(platform.directory / "foreign.pem"))
    worker = WorkerClaims(new_id(), version.function_id, version.id, ACCOUNT, 0.0)
    now = time.time()
    tokens = {
        "altered path": altered(assertion={"secretPaths": ["x"]}),
        "longer life": altered(exp=2_000_000_000),
        "cut": own[:-4],
        "unsigned": f"eyJhbGciOiJub25lIn0.{claims}.",
        "not a token": "x",
        "worker token": await platform.worker_token(version, new_id()),
        "api key": platform.keys["admin"],
        "another installation's": foreign.for_secrets(worker, [ess_path(version)], now)[0],
        "expired": real.for_secrets(worker, [ess_path(version)], now - 901)[0],
        "another purpose": real.assertion(worker, "instance", now)[0],
        "without paths": real.assertion(worker, "secrets", now)[0],
    }
    for what, text in tokens.items():
        status, answer, _ = await read_secrets(platform, text, ess_path(version))
        assert status in (401, 403), what
        assert VALUE not in json.dumps(answer)
    assert (await read_secrets(platform, "", ess_path(version)))[0] == 401
    for namespace in ("", "other"):
        assert (await read_secrets(platform, own, ess_path(version), namespace=namespace))[0] == 400
    assert (await read_secrets(platform, own, ess_path(version)))[0] == 200
    # And it is good for nothing else.
    headers = {"Authorization": f"Bearer {own}"}
    async with platform.session.get(platform.gateway.url + "/v2/nvcf/functions", headers=headers) as response:
        assert response.status == 401
    async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
        request = nvcf_pb2.WorkerConnect(functionId=version.function_id, functionVersionId=version.id)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await nvcf_pb2_grpc.WorkerStub(channel).ConnectOnce(
                request, metadata=(("authorization", f"Bearer {own}"),)
            )
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_token_ends_with_its_deployment_and_secrets_with_their_version(platform: Platform) -> None:
    version = await platform.deployed_version(secrets=[{"name": "A", "value": VALUE}])
    own = await agent_token(platform, version)
    deployment = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    await platform.call("DELETE", deployment)
    await end_instances(platform, version)

    async def void() -> bool:
        return (await read_secrets(platform, own, ess_path(version)))[0] == 403

    await eventually(void, "the token is void")
    await platform.call(
        "DELETE", f"/v2/nvcf/functions/{version.function_id}/versions/{version.id}", expect=204
    )
    client = await platform.broker_client()
    try:
        stored = await JetStream(client).message(
            "KV_nvcf_secrets", last_by_subj=f"$KV.nvcf_secrets.versions.{version.id}"
        )
        assert stored is not None
        assert json.loads(stored.data)["sealed"] == {}, "and the rest goes with the next sweeps"
    finally:
        await client.close()


async def test_a_function_key_sees_only_its_functions_secrets(platform: Platform) -> None:
    mine, other = await platform.create_version("mine"), await platform.create_version("other")
    body = {"scopes": ["manage", "list"], "functionIds": [mine.function_id]}
    platform.keys["limited"] = (await platform.call("POST", "/v2/nvcf/keys", body))["key"]["key"]
    await put_secrets(platform, mine, A="x", key="limited")
    await put_secrets(platform, other, A="x", key="limited", expect=403)
    await platform.call("GET", secrets_path(other), key="limited", expect=403)
    await platform.call("GET", "/v2/nvcf/registry-credentials", key="limited", expect=403)
    events = (await platform.call("GET", "/v2/nvcf/events?kind=secret", key="limited"))["events"]
    assert {each["functionVersionId"] for each in events} == {mine.id}
