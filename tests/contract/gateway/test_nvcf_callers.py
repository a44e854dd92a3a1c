"""What callers of NVIDIA's invocation service rely on beyond protocol.md, section 4, byte by byte."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.peers.nvcf_http import Answer, GoClient
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform

UNKNOWN = "3b241101-e2bb-4255-8caf-4136c566a962"

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def raw(
    platform: Platform, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> Answer:
    """A request as it stands on the wire; header names of the answer as sent."""
    client = GoClient()
    sent = {**platform.authorization(), **(headers or {})}
    answer = await client.send(method, platform.gateway.url + path, sent, body, None, len(body))
    client.close()
    return answer


def named(answer: Answer, name: str) -> list[str]:
    return [value for key, value in answer.headers if key.lower() == name]


async def test_every_answer_of_a_request_has_its_id_and_status(platform: Platform) -> None:
    version = await platform.deployed_version(keep_queued=False)
    passed = {"function-id": version.function_id}
    short = {"NVCF-POLL-SECONDS": "1"}
    answers = await asyncio.gather(
        raw(platform, "POST", version.pexec, short),
        raw(platform, "DELETE", "/anything", {**passed, **short}),
    )
    for answer in answers:
        assert (answer.status, answer.body) == (504, b"")
        assert named(answer, "content-length") == ["0"]
        assert named(answer, "nvcf-status") == ["errored"]
        assert len(named(answer, "nvcf-reqid")) == 1
        assert "nvcf-reqid" in named(answer, "access-control-expose-headers")


async def test_a_timed_out_exec_call_is_wrapped(platform: Platform) -> None:
    version = await platform.deployed_version(keep_queued=False)
    body = b'{"requestHeader": {"pollDurationSeconds": 1}, "requestBody": {}}'
    answer = await raw(platform, "POST", version.exec, {}, body)
    assert answer.status == 504
    assert named(answer, "content-type") == ["application/json"]
    wrapped = json.loads(answer.body)
    assert wrapped == {"reqId": named(answer, "nvcf-reqid")[0], "status": "errored", "errorCode": 504}


async def test_pass_through_says_id_and_status_beside_what_the_function_says(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(raw(platform, "GET", "/x", {"function-id": version.function_id}))
        work = await worker.pull()
        await work.answer(
            b"",
            "404 Not Found",
            "Access-Control-Expose-Headers: X-Mine",
            "nvcf-status: forged",
            "nvcf-reqid: x",
        )
        answer = await task
        assert answer.status == 404
        assert named(answer, "nvcf-status") == ["errored"]
        assert named(answer, "nvcf-reqid") == [work.request.requestId]
        assert named(answer, "access-control-expose-headers") == ["X-Mine", "nvcf-reqid"]
        assert named(answer, "access-control-allow-origin") == [], "CORS is the function's affair"


async def test_a_202_of_a_function_behind_pass_through_can_be_polled(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(raw(platform, "POST", "/start", {"function-id": version.function_id}))
        work = await worker.pull()
        await work.answer(b"begun", "202 Accepted", "Content-Length: 5")
        answer = await task
        assert (answer.status, named(answer, "nvcf-status")) == (202, ["in-progress"])
        request_id = named(answer, "nvcf-reqid")[0]
        polled = await raw(platform, "GET", f"/v2/nvcf/pexec/status/{request_id}", {"NVCF-POLL-SECONDS": "1"})
        assert polled.status == 504
        assert json.loads(polled.body)["detail"] == "worker did not acknowledge the status request."


@pytest.mark.parametrize(
    "headers", [{"function-id": "my-function"}, {"function-id": ""}, {"function-version-id": UNKNOWN}]
)
async def test_routing_headers_that_are_no_ids_do_not_route(
    platform: Platform, headers: dict[str, str]
) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(raw(platform, "POST", version.pexec, headers))
        work = await worker.pull()
        await work.answer(b"by path")
        assert (await task).body == b"by path"


async def test_an_empty_version_header_means_any_version(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        headers = {"function-id": version.function_id, "function-version-id": ""}
        task = asyncio.create_task(raw(platform, "POST", "/x", headers))
        work = await worker.pull()
        assert work.request.requestPath == "/x"
        await work.answer()
        assert (await task).status == 200


async def test_preflight_and_cors_of_the_path_routes(platform: Platform) -> None:
    version = await platform.deployed_version()
    asked = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,nvcf-poll-seconds",
        "Authorization": "",
    }
    answer = await raw(platform, "OPTIONS", version.pexec, asked)
    assert (answer.status, answer.body) == (200, b"")
    expected = {
        "access-control-allow-origin": ["https://page.example"],
        "access-control-allow-credentials": ["true"],
        "access-control-allow-methods": ["POST"],
        "access-control-allow-headers": ["authorization,nvcf-poll-seconds"],
        "access-control-max-age": ["86400"],
        "vary": ["origin, access-control-request-method, access-control-request-headers"],
    }
    assert {name: named(answer, name) for name in expected} == expected
    refused = await raw(
        platform, "POST", version.pexec, {"Origin": "https://a.example", "Authorization": "x"}
    )
    assert refused.status == 401
    assert named(refused, "access-control-allow-origin") == ["https://a.example"], "pages must see errors too"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"/v2/nvcf/pexec/status/{UNKNOWN}", 404),
        ("GET", f"/v2/nvcf/exec/status/{UNKNOWN}", 404),
        ("POST", f"/v2/nvcf/pexec/functions/{UNKNOWN}", 404),
        ("GET", "/v2/nvcf/unknown", 404),
        ("POST", "/v2/nvcf/worker/request-attach", 401),
        ("GET", "/v2/nvcf/worker/request-attach", 401),
    ],
)
async def test_errors_are_problems(platform: Platform, method: str, path: str, status: int) -> None:
    answer = await raw(platform, method, path, {"Content-Type": "application/octet-stream+h1"})
    assert answer.status == status
    assert named(answer, "content-type") == ["application/problem+json"]
    document: dict[str, Any] = json.loads(answer.body)
    assert document["status"] == status
    assert document["title"] == {401: "Unauthorized", 404: "Not Found"}[status]
    assert document["detail"]
    assert named(answer, "server") == ["nvcf-gateway"], "and not of which parts it is made"


@pytest.mark.parametrize("body", [b"{}", b'{"requestHeader": {}}'])
async def test_exec_without_an_inner_body_is_400(platform: Platform, body: bytes) -> None:
    version = await platform.deployed_version()
    answer = await raw(platform, "POST", version.exec, {}, body)
    assert (answer.status, json.loads(answer.body)["field"]) == (400, "requestBody")
