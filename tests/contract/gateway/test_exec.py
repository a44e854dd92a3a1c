"""exec: the JSON wrapper (protocol.md, section 4.6)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.peers.worker import PeerWorker, Work, peer_worker
from tests.support.platform.gateways import Platform, Version

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def call(
    platform: Platform, version: Version, body: Any, **headers: str
) -> tuple[int, dict[str, Any], Any]:
    url = platform.gateway.url + version.exec
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {**platform.authorization(), "Content-Type": "application/json", **headers}
    async with platform.session.post(url, data=data, headers=sent) as response:
        return response.status, json.loads(await response.read() or b"null"), response.headers


async def exchanged(
    platform: Platform, worker: PeerWorker, version: Version, body: Any, *answer: Any
) -> tuple[Work, int, dict[str, Any], Any]:
    task = asyncio.create_task(call(platform, version, body))
    work = await worker.pull()
    await work.answer(*answer)
    return work, *await task


async def test_inner_body_is_unwrapped_and_the_answer_wrapped(platform: Platform) -> None:
    version = await platform.deployed_version(inferenceUrl="/predict")
    body = {"requestHeader": {"pollDurationSeconds": 7}, "requestBody": {"text": "hällo", "n": [1, 2]}}
    async with peer_worker(platform, version) as worker:
        work, status, answer, headers = await exchanged(
            platform, worker, version, body, b'{"score": 0.5}', "200 OK", "Content-Type: application/json"
        )
        assert json.loads(work.request.requestBody) == body["requestBody"]
        assert work.headers["content-type"] == "application/json"
        assert work.headers["content-length"] == str(len(work.request.requestBody))
        assert work.headers["nvcf-poll-seconds"] == "7"
        assert (work.request.requestMethod, work.request.requestPath) == ("POST", "/predict")
        assert status == 200
        assert answer == {
            "reqId": work.request.requestId,
            "status": "fulfilled",
            "percentComplete": 100,
            "response": {"score": 0.5},
        }
        assert headers["nvcf-reqid"] == work.request.requestId
        assert headers["nvcf-status"] == "fulfilled"


@pytest.mark.parametrize(
    ("line", "header", "status", "expected"),
    [
        ("500 Internal Server Error", "X: y", 500, {"status": "errored", "errorCode": 500}),
        ("422 Unprocessable Entity", "X: y", 422, {"status": "errored", "errorCode": 422}),
        ("202 Accepted", "NVCF-PERCENT-COMPLETE: 40", 202, {"status": "in-progress", "percentComplete": 40}),
        (
            "302 Found",
            "Location: http://store/result.zip",
            200,
            {"status": "fulfilled", "percentComplete": 100, "responseReference": "http://store/result.zip"},
        ),
        ("204 No Content", "X: y", 204, None),
    ],
)
async def test_other_statuses(
    platform: Platform, line: str, header: str, status: int, expected: dict[str, Any] | None
) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        work, got, answer, _ = await exchanged(
            platform, worker, version, {"requestBody": 1}, b"", line, header
        )
        assert got == status
        if expected is not None:
            assert answer == {"reqId": work.request.requestId, **expected}


async def test_large_inner_body_goes_by_attach(platform: Platform) -> None:
    version = await platform.deployed_version()
    inner = {"text": "x" * 100_000}
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(call(platform, version, {"requestBody": inner}))
        work = await worker.pull()
        _, _, rest = await work.get()
        assert json.loads(work.request.requestBody + rest) == inner
        await work.answer(b"1", "200 OK", "Content-Type: application/json")
        assert (await task)[0] == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[1]", "body"),
        (b"\xff", "body"),
        (b"[" * 100_000, "body"),
        ({"requestHeader": 1, "requestBody": 2}, "requestHeader"),
        ({"requestHeader": {"pollDurationSeconds": "x"}}, "requestHeader.pollDurationSeconds"),
        ({"requestHeader": {"inputAssetReferences": [1]}}, "requestHeader.inputAssetReferences[0]"),
    ],
)
async def test_malformed_wrapper_is_400_naming_the_field(platform: Platform, body: Any, field: str) -> None:
    version = await platform.deployed_version()
    status, problem, headers = await call(platform, version, body)
    assert (status, problem["field"]) == (400, field)
    assert headers["content-type"] == "application/problem+json"


async def test_poll_time_above_an_hour_is_400(platform: Platform) -> None:
    version = await platform.deployed_version()
    status, problem, _ = await call(platform, version, {"requestHeader": {"pollDurationSeconds": 3601}})
    assert (status, problem["title"]) == (400, "Bad Request")
