"""Tokens, routing and malformed input at every listener: a clear 4xx, never a 500.

See protocol.md, sections 3 to 5 and 8.
"""

from __future__ import annotations

import asyncio
import time

import grpc.aio
import nats.errors
import pytest
from nats.aio.client import Client

from nvcf_gateway.access.signing_keys import SigningKeys
from nvcf_gateway.access.worker_tokens import WorkerTokens
from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.peers.worker import broker_token, connect_once, peer_worker
from tests.support.platform.gateways import Platform
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def status_of(platform: Platform, method: str, path: str, headers: dict[str, str]) -> int:
    url = platform.gateway.url + path
    async with platform.session.request(method, url, headers=headers) as response:
        assert response.headers["content-type"] == "application/problem+json"
        return response.status


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwdw==",
        "Bearer nvcf-000000000000-" + "a" * 43,
        "Bearer \u00e4",
    ],
)
async def test_calls_without_a_valid_key_are_401(platform: Platform, authorization: str | None) -> None:
    version = await platform.deployed_version()
    headers = {} if authorization is None else {"Authorization": authorization}
    for method, path in (
        ("POST", version.pexec),
        ("POST", version.exec),
        ("GET", "/v2/nvcf/functions"),
        ("POST", "/v2/nvcf/functions"),
        ("GET", "/v2/nvcf/worker/request-attach"),
        ("POST", "/v2/nvcf/worker/request-attach"),
    ):
        assert await status_of(platform, method, path, headers) == 401
    assert await status_of(platform, "GET", "/x", {**headers, "function-id": version.function_id}) == 401


async def test_a_secret_with_one_wrong_character_is_401(platform: Platform) -> None:
    version = await platform.deployed_version()
    key = platform.keys["admin"]
    forged = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert await status_of(platform, "POST", version.pexec, {"Authorization": f"Bearer {forged}"}) == 401


@pytest.mark.parametrize(
    ("key", "method", "path", "expected"),
    [
        ("list", "POST", "{pexec}", 403),
        ("agent", "POST", "{pexec}", 403),
        ("foreign", "POST", "{pexec}", 404),
        ("foreign", "GET", "/v2/nvcf/functions/{function}", 404),
        ("foreign", "DELETE", "/v2/nvcf/functions/{function}", 404),
        ("invoke", "GET", "/v2/nvcf/functions", 403),
        ("list", "POST", "/v2/nvcf/functions", 403),
        ("list", "DELETE", "/v2/nvcf/functions/{function}", 403),
    ],
)
async def test_keys_may_do_what_their_scopes_allow_and_no_more(
    platform: Platform, key: str, method: str, path: str, expected: int
) -> None:
    version = await platform.deployed_version()
    filled = path.format(pexec=version.pexec, function=version.function_id)
    assert await status_of(platform, method, filled, platform.authorization(key)) == expected


async def test_unknown_targets_are_404(platform: Platform) -> None:
    version = await platform.create_version()
    key = platform.authorization()
    unknown = new_id()
    for path in (
        version.pexec,
        f"/v2/nvcf/pexec/functions/{version.function_id}",
        f"/v2/nvcf/pexec/functions/{unknown}",
        f"/v2/nvcf/pexec/functions/{unknown}/versions/{version.id}",
        "/v2/nvcf/pexec/functions/not-a-uuid",
        "/v2/nvcf/nothing",
        "/",
    ):
        assert await status_of(platform, "POST", path, key) == 404, path
    assert await status_of(platform, "PUT", version.pexec, key) == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"NVCF-POLL-SECONDS": "x"},
        {"NVCF-POLL-SECONDS": "3601"},
        {"NVCF-POLL-SECONDS": "1.5"},
        {"NVCF-POLL-SECONDS": "9" * 400},
        {"nvcf-feature-enable-only-stream-full-request": "maybe"},
    ],
)
async def test_malformed_headers_are_400(platform: Platform, headers: dict[str, str]) -> None:
    version = await platform.deployed_version()
    assert await status_of(platform, "POST", version.pexec, {**platform.authorization(), **headers}) == 400


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(2000)) + b"\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
async def test_malformed_http_gets_4xx_or_is_cut(platform: Platform, raw: bytes) -> None:
    host, port = platform.gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    if writer.can_write_eof():
        writer.write_eof()
    async with asyncio.timeout(10):
        answer = await reader.read(2000)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), answer
    writer.close()
    async with platform.session.get(platform.gateway.url + "/health") as response:
        assert response.status == 200


async def test_cors_is_permissive_on_path_routes(platform: Platform) -> None:
    version = await platform.deployed_version()
    asked = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, nvcf-poll-seconds",
    }
    url = platform.gateway.url + version.pexec
    async with platform.session.options(url, headers=asked) as response:
        assert response.status == 200
        assert response.headers["access-control-allow-origin"] == "https://page.example"
        assert response.headers["access-control-allow-methods"] == "POST"
        assert response.headers["access-control-allow-headers"] == "authorization, nvcf-poll-seconds"
        assert response.headers["access-control-max-age"] == "86400"
    async with platform.session.post(url, headers={"Origin": "https://page.example"}) as response:
        assert response.status == 401
        assert response.headers["access-control-allow-origin"] == "https://page.example"


# --- gRPC


async def refused(
    platform: Platform, token: str | None, instance: str, function: str, version: str
) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await connect_once(platform.gateway.grpc, token, instance, function, version)
    return caught.value.code()


async def test_connect_once_gives_region_and_a_new_token(platform: Platform) -> None:
    version = await platform.deployed_version()
    instance = new_id()
    token = await platform.worker_token(version, instance)
    answer = await connect_once(platform.gateway.grpc, token, instance, version.function_id, version.id)
    assert (answer.connectedRegion, list(answer.otherRegions)) == ("local", [])
    assert 2.9 * 3600 < answer.expiration.seconds - time.time() < 3.1 * 3600
    again = await connect_once(
        platform.gateway.grpc, answer.nvcfWorkerToken, instance, version.function_id, version.id
    )
    assert again.nvcfWorkerToken


async def test_connect_once_refuses_wrong_tokens(platform: Platform) -> None:
    version, other = await platform.deployed_version(), await platform.deployed_version()
    instance = new_id()
    token = await platform.worker_token(version, instance)
    tokens = WorkerTokens(SigningKeys(platform.directory / "signing.pem"), life=60)
    expired, _ = tokens.issue(
        function_id=version.function_id, version_id=version.id, instance_id=instance, nca_id="a", now=1e9
    )
    for bad in (None, "", "x.y.z", platform.keys["admin"], expired, token[:-4] + "AAAA"):
        code = await refused(platform, bad, instance, version.function_id, version.id)
        assert code is grpc.StatusCode.UNAUTHENTICATED, bad
    for foreign in (
        (new_id(), version.function_id, version.id),
        (instance, other.function_id, version.id),
        (instance, version.function_id, other.id),
    ):
        assert await refused(platform, token, *foreign) is grpc.StatusCode.PERMISSION_DENIED
    assert await refused(platform, token, instance, "x", "y") is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_deleted_version_is_refused(platform: Platform) -> None:
    version = await platform.create_version()
    instance = new_id()
    token = await platform.worker_token(version, instance)
    await platform.call("DELETE", f"/v2/nvcf/functions/{version.function_id}", expect=204)
    code = await refused(platform, token, instance, version.function_id, version.id)
    assert code is grpc.StatusCode.NOT_FOUND


async def test_provision_creates_a_missing_stream_again(platform: Platform) -> None:
    version = await platform.deployed_version()
    instance = new_id()
    token = await platform.worker_token(version, instance)
    client = await platform.broker_client()
    try:
        await client.request(f"$JS.API.STREAM.DELETE.rq_local_{version.id}", b"", timeout=5)
        async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
            stub: nvcf_pb2_grpc.WorkerAsyncStub = nvcf_pb2_grpc.WorkerStub(channel)

            async def provision(region: str) -> None:
                await stub.ProvisionRegionalWorker(
                    nvcf_pb2.ProvisionWorkerRequest(
                        instanceId=instance,
                        functionId=version.function_id,
                        functionVersionId=version.id,
                        regionToProvision=region,
                    ),
                    metadata=(("authorization", f"Bearer {token}"),),
                    timeout=10,
                )

            await provision("local")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await provision("elsewhere")
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.RequestSecretCredentials(nvcf_pb2.SecretCredentialsRequest(), timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await platform.queue_is_empty(version)
    finally:
        await client.close()


# --- broker


async def test_broker_refuses_workers_without_a_genuine_token(platform: Platform) -> None:
    version = await platform.deployed_version()
    token = await platform.worker_token(version, new_id())
    for bad in ("x", broker_token("x.y.z"), broker_token(token[:-4] + "AAAA"), token):
        client = Client()
        with pytest.raises((nats.errors.Error, OSError)):
            await client.connect(
                platform.broker.url,
                token=bad,
                allow_reconnect=False,
                max_reconnect_attempts=0,
                connect_timeout=3,
            )
        await client.close()


async def test_a_worker_may_touch_only_its_own_version(platform: Platform) -> None:
    mine, foreign = await platform.deployed_version(), await platform.deployed_version()
    async with peer_worker(platform, mine) as worker:
        errors: list[str] = []

        async def collect(error: Exception) -> None:
            errors.append(str(error).lower())

        worker.client._error_cb = collect
        stream = f"rq_local_{foreign.id}"
        for subject in (
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers",
            f"$JS.API.STREAM.DELETE.rq_local_{mine.id}",
            f"rq.local.{mine.id}.{new_id()}",
            f"$JS.ACK.{stream}.x.1.1.1.1.1",
            "$KV.nvcf_api_keys.000000000000",
            f"nvcf.cancel.{mine.id}",
            "$SYS.REQ.USER.AUTH",
        ):
            errors.clear()
            await worker.client.publish(subject, b"")
            await eventually(lambda: any("permissions violation" in error for error in errors), subject)
        for subject in (f"nvcf.cancel.{foreign.id}", "_INBOX.>", "rq.>", "$SYS.REQ.USER.AUTH", ">"):
            errors.clear()
            await worker.client.subscribe(subject)
            await eventually(lambda: any("permissions violation" in error for error in errors), subject)
