"""Sessions at the gateway: WebSocket and plain HTTP/1.1 callers, on both ports, against a peer's worker.

See protocol.md, section 7.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.typing import Subprotocol

from tests.functions.websocket_service import FLOOD_BYTES, WebSocketService, start_websockets
from tests.support.http.session_callers import routing
from tests.support.peers.tunnel import TunnelWorker, tunnel_worker
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version, eventually, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

FLAGS = ("--sessions", "127.0.0.1:0")
PORTS = ("sessions", "http")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and two gateways with a sessions port."""
    directory: Path = tmp_path_factory.mktemp("sessions")
    async with running_platform(directory, gateways=2, flags=FLAGS) as running:
        yield running


def socket_bytes() -> int:
    """The most bytes that the kernel buffers for one connection, both directions' ends together."""
    limits = (Path(f"/proc/sys/net/ipv4/tcp_{name}").read_text() for name in ("rmem", "wmem"))
    return sum(int(limit.split()[2]) for limit in limits)


@contextlib.asynccontextmanager
async def websocket_function(
    platform: Platform,
) -> AsyncIterator[tuple[Version, WebSocketService, TunnelWorker]]:
    """A version whose worker serves sessions from a real WebSocket server."""
    version = await platform.deployed_version()
    service, server, port = await start_websockets()
    try:
        async with peer_worker(platform, version) as worker, tunnel_worker(worker, port) as tunnel:
            yield version, service, tunnel
    finally:
        server.close()


def url(platform: Platform, port: str, path: str = "/", gateway: int = 0) -> str:
    """WebSocket URL of one of the gateway's ports."""
    chosen = platform.gateways[gateway]
    address = chosen.sessions if port == "sessions" else chosen.url.removeprefix("http://")
    return f"ws://{address}{path}"


@pytest.mark.parametrize("port", PORTS)
async def test_messages_pass_both_ways(platform: Platform, port: str) -> None:
    async with websocket_function(platform) as (version, service, tunnel):
        headers = dict(routing(platform, version))
        async with connect(
            url(platform, port, "/room?a=%20b"), additional_headers=headers, compression=None, max_size=None
        ) as caller:
            assert caller.response is not None
            request_id = caller.response.headers["nvcf-reqid"]
            assert f"nvcf-request-id={request_id};" in caller.response.headers["set-cookie"]
            for message in ("text", b"bytes", b"\x00" * (3 * 1024 * 1024)):
                await caller.send(message)
                assert await caller.recv() == message
        assert service.paths == ["/room?a=%20b"]
        seen = service.headers[0]
        assert "authorization" not in seen
        assert "function-id" not in seen
        assert seen["nvcf-reqid"] == request_id == tunnel.works[0].request.requestId
        assert seen["nvcf-ncaid"] == "account-one"
        await eventually(lambda: service.closes == [1000], "the close handshake reached the function")


@pytest.mark.parametrize("port", PORTS)
async def test_the_function_closes_with_its_own_code(platform: Platform, port: str) -> None:
    async with websocket_function(platform) as (version, _service, _tunnel):
        headers = dict(routing(platform, version))
        async with connect(url(platform, port), additional_headers=headers) as caller:
            await caller.send("bye")
            assert await caller.recv() == "bye"
            with pytest.raises(ConnectionClosedError) as raised:
                await caller.recv()
        assert raised.value.rcvd is not None
        assert raised.value.rcvd.code == 4000


@pytest.mark.parametrize("port", PORTS)
async def test_a_browser_routes_by_subprotocol(platform: Platform, port: str) -> None:
    async with websocket_function(platform) as (version, service, _tunnel):
        entries = [
            f"authorization.{platform.keys['admin']}",
            f"function-id.{version.function_id}",
            f"function-version-id.{version.id}",
        ]
        offered = [Subprotocol(entry) for entry in entries]
        async with connect(url(platform, port), subprotocols=offered) as caller:
            # A browser that offered entries takes no answer without one.
            assert caller.subprotocol == f"function-id.{version.function_id}"
            await caller.send("hello")
            assert await caller.recv() == "hello"
        assert "sec-websocket-protocol" not in service.headers[0]
        async with connect(url(platform, port), subprotocols=[*offered, Subprotocol("v1.json")]) as caller:
            assert caller.subprotocol == "v1.json"
        assert service.headers[1]["sec-websocket-protocol"] == "v1.json"
        # Real headers win.
        with pytest.raises(InvalidStatus) as raised:
            await connect(
                url(platform, port), subprotocols=offered, additional_headers={"authorization": "Bearer no"}
            )
        assert raised.value.response.status_code == 401


@pytest.mark.parametrize("port", PORTS)
async def test_a_refused_upgrade_passes(platform: Platform, port: str) -> None:
    async with websocket_function(platform) as (version, _service, _tunnel):
        with pytest.raises(InvalidStatus) as raised:
            await connect(url(platform, port, "/refuse"), additional_headers=dict(routing(platform, version)))
        assert raised.value.response.status_code == 403
        assert raised.value.response.body == b"not you\n"
        assert "nvcf-reqid" in raised.value.response.headers


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("way", ["header", "subprotocol", "cookie"])
async def test_a_caller_comes_back_to_its_session(platform: Platform, port: str, way: str) -> None:
    async with websocket_function(platform) as (version, _service, tunnel):
        headers = dict(routing(platform, version))
        caller = await connect(url(platform, port), additional_headers=headers)
        assert caller.response is not None
        request_id = caller.response.headers["nvcf-reqid"]
        caller.transport.abort()
        offered = None
        if way == "header":
            headers["nvcf-request-id"] = request_id
        elif way == "cookie":
            headers["cookie"] = f"a=b; {caller.response.headers['set-cookie'].split(';')[0]}"
        else:
            offered = [Subprotocol(f"nvcf-request-id.{request_id}")]
        async with connect(
            url(platform, port, gateway=1), additional_headers=headers, subprotocols=offered
        ) as back:
            assert back.response is not None
            assert back.response.headers["nvcf-reqid"] == request_id
            await back.send("still me")
            assert await back.recv() == "still me"
        assert len(tunnel.works) == 1


async def test_a_stale_cookie_gets_a_new_session(platform: Platform) -> None:
    async with websocket_function(platform) as (version, _service, tunnel):
        headers = dict(routing(platform, version))
        headers["cookie"] = "nvcf-request-id=a0a0a0a0-0000-4000-8000-000000000000"
        async with connect(url(platform, "sessions"), additional_headers=headers) as caller:
            await caller.send("x")
            assert await caller.recv() == "x"
        assert len(tunnel.works) == 1


@pytest.mark.parametrize("port", PORTS)
async def test_a_slow_reader_holds_the_function_back(platform: Platform, port: str) -> None:
    async with websocket_function(platform) as (version, service, _tunnel):
        before = platform.gateway.child.resident_mib()
        headers = dict(routing(platform, version))
        async with connect(
            url(platform, port, "/flood"), additional_headers=headers, max_queue=1, max_size=None
        ) as caller:
            await caller.recv()
            last = -1
            while last != service.sent:
                last = service.sent
                await asyncio.sleep(0.5)
            assert service.sent * FLOOD_BYTES < 3 * socket_bytes() + 8 * 2**20, "more than sockets hold"
            assert platform.gateway.child.resident_mib() - before < 30
            caller.transport.abort()


async def test_other_accounts_are_refused_on_the_http_port(platform: Platform) -> None:
    version = await platform.deployed_version()
    for headers, status in (
        ({"function-id": version.function_id}, 401),
        (dict(routing(platform, version, key="foreign")), 404),
    ):
        with pytest.raises(InvalidStatus) as raised:
            await connect(url(platform, "http"), additional_headers=headers)
        assert raised.value.response.status_code == status


async def test_a_broken_tunnel_closes_the_caller(platform: Platform) -> None:
    async with websocket_function(platform) as (version, _service, tunnel):
        for port in PORTS:
            headers = dict(routing(platform, version))
            async with connect(url(platform, port), additional_headers=headers) as caller:
                await caller.send("x")
                await caller.recv()
                tunnel.cut()
                with pytest.raises((ConnectionClosedError, ConnectionClosedOK)):
                    await caller.recv()


async def test_plain_requests_share_the_connections_session(platform: Platform) -> None:
    version = await platform.deployed_version()
    seen: list[web.Request] = []

    async def function(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Expect"):
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = await request.read()
        seen.append(request)
        if request.path == "/chunked":
            response = web.StreamResponse(headers={"X-Own": "yes"})
            await response.prepare(request)
            for _ in range(3):
                await response.write(body)
            await response.write_eof()
            return response
        return web.Response(status=201, body=body)

    runner = web.ServerRunner(web.Server(function))  # type: ignore[arg-type]
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with (
            peer_worker(platform, version) as worker,
            tunnel_worker(worker, runner.addresses[0][1]) as tunnel,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=1), timeout=aiohttp.ClientTimeout(total=30)
            ) as caller,
        ):
            base = f"http://{platform.gateway.sessions}"
            headers = dict(routing(platform, version))
            async with caller.put(f"{base}/sized", data=b"x" * 300_000, headers=headers) as response:
                assert response.status == 201
                assert await response.read() == b"x" * 300_000
                assert "nvcf-reqid" in response.headers

            async def parts() -> AsyncIterator[bytes]:
                for _ in range(3):
                    yield b"part"

            async with caller.post(f"{base}/chunked", data=parts(), headers=headers) as response:
                assert await response.read() == b"part" * 9
                assert response.headers["X-Own"] == "yes"
            async with caller.head(f"{base}/sized", headers=headers) as response:
                assert await response.read() == b""
            headers["Expect"] = "100-continue"
            async with caller.post(f"{base}/sized", data=b"waited", headers=headers) as response:
                assert await response.read() == b"waited"
            assert len(tunnel.works) == 1
            assert [request.method for request in seen] == ["PUT", "POST", "HEAD", "POST"]
            assert all("Authorization" not in request.headers for request in seen)
    finally:
        await runner.cleanup()
