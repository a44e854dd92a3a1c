"""B12: tickets, answer headers, parser errors, telemetry endpoints and assets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and two gateways."""
    directory: Path = tmp_path_factory.mktemp("doors")
    async with running_platform(directory, gateways=2) as running:
        yield running


async def test_b12_a_ticket_works_once_at_whatever_gateway(platform: Platform) -> None:
    made = await platform.call("POST", "/v2/nvcf/dashboard/tickets")

    async def use(gateway: int) -> int:
        url = platform.gateways[gateway].url + "/v2/nvcf/dashboard/sessions"
        headers = {"Authorization": f"Bearer {made['ticket']}"}
        async with platform.session.post(url, headers=headers) as response:
            return response.status

    assert sorted(await asyncio.gather(*(use(number % 2) for number in range(6)))) == [200] + [401] * 5
    assert await use(0) == 401


@pytest.mark.parametrize("size", [1_000, 200_000])
@pytest.mark.parametrize("way", ["attach", "inline"])
async def test_b12_answer_headers_are_bounded(platform: Platform, size: int, way: str) -> None:
    """The caller is told so, and the worker has delivered."""
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        url = platform.gateway.url + version.pexec

        async def call() -> tuple[int, str, bytes]:
            async with platform.session.post(url, headers=platform.authorization(), data=b"") as response:
                return response.status, response.headers["Content-Type"], await response.read()

        task = asyncio.create_task(call())
        work = await worker.pull()
        values = ["y" * 1000] * (size // 1000)
        if way == "attach":
            lines = [f"X-{index}: {value * 5}" for index, value in enumerate(values[::5])]
            delivered, _ = await work.answer(b"body", "200 OK", "Content-Type: text/plain", *lines)
            assert delivered == 200
        else:
            reply = nvcf_pb2.InlineResponse(body=b"body", httpStatusCode=200, endOfResponse=True)
            reply.headers.add(key="Content-Type", value="text/plain")
            for index, value in enumerate(values[::5]):
                reply.headers.add(key=f"X-{index}", value=value * 5)
            acknowledged = await work.inline(reply)
            assert "Nvcf-Reply-Status" not in (acknowledged.headers or {})
            await work.ack()
        status, kind, body = await task
        if size < 65_536:
            assert (status, body) == (200, b"body")
        else:
            assert (status, kind) == (500, "application/problem+json")
            assert "headers" in json.loads(body)["detail"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
    ],
)
async def test_b12_parser_errors_are_problem_documents(platform: Platform, sent: bytes, status: int) -> None:
    host, _, port = platform.gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"application/problem+json" in head
    assert b"server: nvcf-gateway" in head.lower() + b"\r\n"
    assert b"aiohttp" not in answer.lower()
    assert b"python" not in answer.lower()
    assert json.loads(body)["status"] == status


async def test_b12_keys_of_one_function_leave_the_rest_alone(platform: Platform) -> None:
    """Telemetry endpoints that their functions do not use, and assets of others."""
    endpoint = {
        "name": new_id()[:8], "endpoint": "https://example.org/otlp", "protocol": "HTTP",
        "provider": "PROMETHEUS", "types": ["METRICS"], "secret": {"name": "x"},
    }  # fmt: skip
    made = await platform.call("POST", "/v2/nvcf/telemetries", endpoint)
    used, other = await platform.deployed_version("used"), await platform.deployed_version("other")
    for name, version in (("narrow", used), ("elsewhere", other)):
        key = await platform.call(
            "POST", "/v2/nvcf/keys",
            {"scopes": ["invoke", "list"], "functionIds": [version.function_id]},
        )  # fmt: skip
        platform.keys[name] = key["key"]["key"]
    identifier = made["telemetry"]["telemetryId"]
    assert (await platform.call("GET", "/v2/nvcf/telemetries", key="narrow"))["telemetries"] == []
    await platform.call("GET", f"/v2/nvcf/telemetries/{identifier}", key="narrow", expect=404)
    await platform.call("GET", f"/v2/nvcf/telemetries/{identifier}")

    assets = {}
    for owner in ("admin", "narrow", "elsewhere"):
        announced = await platform.call("POST", "/v2/nvcf/assets", {"contentType": "text/plain"}, key=owner)
        async with platform.session.put(announced["uploadUrl"], data=b"x") as response:
            assert response.status == 200
        assets[owner] = f"/v2/nvcf/assets/{announced['assetId']}"
    for method in ("GET", "DELETE"):
        await platform.call(method, assets["elsewhere"], key="narrow", expect=404)
    await platform.call("DELETE", assets["admin"], key="narrow", expect=403)
    await platform.call("GET", assets["admin"], key="narrow")
    await platform.call("DELETE", assets["narrow"], key="narrow", expect=204)
    await platform.call("DELETE", assets["elsewhere"], expect=204)
    await platform.call("DELETE", assets["admin"], expect=204)
