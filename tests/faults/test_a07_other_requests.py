"""A7: a key gives the first call's answer only to the same request, whatever its body is like.

Also what else changes what runs: path, assets and telling headers. And nobody waits for a call that was
refused, or is told to poll for one that is answered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from tests.contract.gateway.test_idempotency import fallback_reply
from tests.contract.gateway.test_polling import Answer, call
from tests.support.peers.worker import PeerWorker, peer_worker
from tests.support.platform.gateways import Gateway, Platform, Version

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = 100_000
FULL = {"nvcf-feature-enable-only-stream-full-request": "true"}
FUNCTIONS = Path(__file__).parents[1] / "functions"


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 20_000):
        yield data[start : start + 20_000]


async def post(
    platform: Platform,
    version: Version,
    key: str,
    data: bytes,
    *,
    chunked: bool = False,
    path: str = "",
    gateway: Gateway | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Answer:
    sent = {"Idempotency-Key": key, **headers}
    body: Any = chunks(data) if chunked else data
    url = (gateway or platform.gateway).url + (path or version.pexec)
    async with platform.session.post(
        url, data=body, headers={**platform.authorization(), **sent}
    ) as response:
        return Answer(response.status, response.headers, await response.read())


async def first_answer(
    platform: Platform, worker: PeerWorker, version: Version, key: str, data: bytes, **options: Any
) -> None:
    task = asyncio.create_task(post(platform, version, key, data, **options))
    work = await worker.pull()
    if work.connection.HasField("requestAuthorizationToken"):
        await work.get()
    await work.answer(b"the first one's")
    assert (await task).body == b"the first one's"


@pytest.mark.parametrize("headers", [{}, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"a" * 10, b"b" * 10),
        (b"a" * LARGE, b"a" * (LARGE - 1) + b"b"),
        (b"a" * LARGE, b"a" * (LARGE + 1)),
        (b"a" * LARGE, b"a" * 10),
    ],
    ids=["small", "last byte", "longer", "shorter"],
)
async def test_another_body_is_refused(
    platform: Platform, one: bytes, other: bytes, chunked: bool, headers: dict[str, str]
) -> None:
    version = await platform.deployed_version()
    options: Any = {"chunked": chunked, "headers": headers}
    async with peer_worker(platform, version) as worker:
        await first_answer(platform, worker, version, "k", one, **options)
        refused = await post(platform, version, "k", other, **options)
        assert (refused.status, refused.headers["content-type"]) == (422, "application/problem+json")
        for again in (False, True):
            repeated = await post(platform, version, "k", one, **{**options, "chunked": again})
            assert (repeated.status, repeated.body) == (200, b"the first one's")
    await platform.queue_is_empty(version)


async def test_another_body_is_refused_while_the_first_call_runs(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(post(platform, version, "k", b"a" * LARGE))
        work = await worker.pull()
        await work.get()
        same = asyncio.create_task(post(platform, version, "k", b"a" * LARGE))
        other = await post(platform, version, "k", b"a" * (LARGE - 1) + b"b")
        assert other.status == 422
        await work.answer(b"one")
        assert [(await task).body for task in (first, same)] == [b"one"] * 2


async def test_a_kept_call_is_compared_too(platform: Platform) -> None:
    version = await platform.deployed_version()
    seconds = {"NVCF-POLL-SECONDS": "1"}
    assert (await post(platform, version, "k", b"a" * LARGE, headers=seconds)).status == 202
    assert (await post(platform, version, "k", b"a" * (LARGE - 1) + b"b", headers=seconds)).status == 422
    assert (await post(platform, version, "k", b"a" * LARGE, headers=seconds)).status == 202


async def test_a_body_that_no_worker_wanted_is_compared(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(post(platform, version, "k", b"a" * LARGE))
        await (await worker.pull()).answer(b"at once")
        assert (await first).body == b"at once"
        assert (await post(platform, version, "k", b"a" * LARGE)).body == b"at once"
        assert (await post(platform, version, "k", b"b" * LARGE)).status == 422


async def test_a_body_that_never_comes_cannot_be_compared(platform: Platform) -> None:
    version = await platform.deployed_version()
    host, port = platform.gateway.url.removeprefix("http://").split(":")
    async with peer_worker(platform, version) as worker:
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {version.pexec} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {platform.keys['admin']}\r\n"
            f"Content-Type: application/octet-stream\r\nIdempotency-Key: k\r\n"
            f"Content-Length: {LARGE}\r\n\r\n".encode()
            + b"a" * 40_000
        )
        work = await worker.pull()
        assert (await work.answer(b"refused", "400 Bad Request"))[0] == 200
        refused = await post(platform, version, "k", b"a" * LARGE)
        assert refused.status == 422
        assert "compared" in refused.json["detail"]
        writer.transport.abort()


async def test_the_digest_outlives_the_gateway(platform: Platform) -> None:
    version = await platform.deployed_version()
    dying = await platform.start_gateway()
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(post(platform, version, "k", b"a" * LARGE, gateway=dying))
        work = await worker.pull()
        await work.get()
        dying.child.kill()
        await dying.child.wait()
        await asyncio.wait({first})
        assert (await post(platform, version, "k", b"b" * LARGE)).status == 422
        await work.ack()


async def test_what_can_never_be_compared_is_refused_at_once(platform: Platform) -> None:
    """The gateway died before it had seen the whole body, and a worker answered all the same."""
    version = await platform.deployed_version()
    dying = await platform.start_gateway()
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(post(platform, version, "k", b"a" * LARGE, gateway=dying))
        work = await worker.pull()
        dying.child.kill()
        await dying.child.wait()
        await asyncio.wait({first})
        found = await fallback_reply(work, version.id)
        work.request.statelessConfig.CopyFrom(nvcf_pb2.StatelessConfig.FromString(found.data))
        assert (await work.answer(b"without it"))[0] == 200
        assert (await post(platform, version, "k", b"a" * LARGE)).status == 422


async def test_what_else_changes_what_runs(platform: Platform) -> None:
    version = await platform.deployed_version()
    body = json.dumps({"requestBody": 1}).encode()
    async with peer_worker(platform, version) as worker:
        await first_answer(platform, worker, version, "k", body, headers={"Content-Type": "application/json"})
        same = {"Content-Type": "application/json", "User-Agent": "other", "X-Request-Id": "2"}
        assert (await post(platform, version, "k", body, headers=same)).status == 200
        for changed in (
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/json", "Accept": "text/event-stream"},
            {"Content-Type": "application/json", **FULL},
            {"Content-Type": "application/json", "NVCF-INPUT-ASSET-REFERENCES": new_id()},
        ):
            assert (await post(platform, version, "k", body, headers=changed)).status == 422, changed
        wrapped = await post(
            platform, version, "k", body, path=version.exec, headers={"Content-Type": "application/json"}
        )
        assert wrapped.status == 422


@pytest.mark.parametrize("route", ["pexec", "exec"])
async def test_a_missing_asset_refuses_all_at_once(platform: Platform, route: str) -> None:
    """Seen beside A10: the followers waited 10 s and got 503."""
    version = await platform.deployed_version()
    body = json.dumps({"requestBody": 1}).encode()
    path = version.exec if route == "exec" else version.pexec
    headers = {"NVCF-INPUT-ASSET-REFERENCES": new_id()}
    answers = await asyncio.gather(
        *(post(platform, version, "missing", body, path=path, headers=headers) for _ in range(20))
    )
    assert {answer.status for answer in answers} == {404}


@pytest.mark.parametrize("handler", ["echo", "generator"])
async def test_followers_get_the_answer(platform: Platform, handler: str) -> None:
    """20 calls at once with one key: the first one's end is no reason to tell the others to poll."""
    version = await platform.deployed_version()
    file = FUNCTIONS / ("echo.py" if handler == "echo" else "kinds.py")
    await platform.start_worker(version, file, handler, concurrency=4)
    data = json.dumps({"id": 1, "numbers": [1]}).encode()
    for number in range(10):
        answers = await asyncio.gather(*(post(platform, version, f"{number}", data) for _ in range(20)))
        assert {answer.status for answer in answers} == {200}, number
        assert len({answer.body for answer in answers}) == 1
        assert len({answer.headers["nvcf-reqid"] for answer in answers}) == 1


async def test_a_call_that_is_refused_frees_its_followers(platform: Platform) -> None:
    """A follower of a call that came to nothing learns it when the key is free, not after 10 s."""
    version = await platform.create_version()
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    await platform.call("POST", path, {"deploymentSpecifications": [{}], "maxBodyBytes": 150_000})
    async with peer_worker(platform, version) as worker:
        first = asyncio.create_task(post(platform, version, "k", b"a" * 200_000, chunked=True))
        work = await worker.pull()
        follower = asyncio.create_task(post(platform, version, "k", b"a" * LARGE, chunked=True))
        await asyncio.sleep(0.2)
        with pytest.raises(aiohttp.ClientError):
            await work.get()
        assert (await first).status == 413
        await work.ack()
        started = asyncio.get_running_loop().time()
        assert (await follower).status == 503
        assert asyncio.get_running_loop().time() - started < 5
        again = asyncio.create_task(call(platform, "POST", version.pexec, b"x", Idempotency_Key="k"))
        await (await worker.pull()).answer()
        assert (await again).status == 200
