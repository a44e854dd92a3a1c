"""Sessions at the gateway: WebSocket over HTTP/2 (RFC 8441), against a real WebSocket server.

See protocol.md, section 7.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from tests.contract.gateway.test_session_websockets import FLAGS, websocket_function
from tests.support.http.h2_websocket import h2_websockets
from tests.support.http.session_callers import grpc_channel, routing
from tests.support.peers.tunnel import tunnel_worker
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, eventually, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and gateway with a sessions port."""
    directory: Path = tmp_path_factory.mktemp("sessions")
    async with running_platform(directory, flags=FLAGS) as running:
        yield running


async def test_the_gateway_announces_that_it_serves_websockets(platform: Platform) -> None:
    async with h2_websockets(platform.gateway.sessions) as caller:
        assert caller.connection.remote_settings[SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1


async def test_messages_pass_both_ways(platform: Platform) -> None:
    async with websocket_function(platform) as (version, service, tunnel):
        async with h2_websockets(platform.gateway.sessions) as caller:
            socket = caller.open("/room?a=%20b", routing(platform, version))
            head = await socket.head
            assert head[":status"] == "200"
            assert not {"sec-websocket-accept", "upgrade", "connection"} & set(head)
            assert f"nvcf-request-id={head['nvcf-reqid']};" in head["set-cookie"]
            for message in ("text", b"bytes", b"\x00" * (3 * 1024 * 1024)):
                await socket.send(message)
                assert await socket.recv() == (message.encode() if isinstance(message, str) else message)
            await socket.close()
            async with asyncio.timeout(20):
                await socket.ended.wait()
            await eventually(lambda: service.closes == [1000], "the handshake reached the function")
        assert service.paths == ["/room?a=%20b"]
        seen = service.headers[0]
        assert "authorization" not in seen
        assert (seen["host"], seen["upgrade"]) == ("gateway", "websocket")
        assert seen["sec-websocket-version"] == "13"
        assert seen["nvcf-reqid"] == head["nvcf-reqid"] == tunnel.works[0].request.requestId


async def test_the_function_closes_and_its_session_is_over(platform: Platform) -> None:
    async with websocket_function(platform) as (version, _, tunnel):
        async with h2_websockets(platform.gateway.sessions) as caller:
            cancels = await tunnel.worker.client.subscribe(f"nvcf.cancel.{version.id}")
            await tunnel.worker.client.flush()
            socket = caller.open("/", routing(platform, version))
            await socket.send("bye")
            assert await socket.recv() == b"bye"
            await socket.answer_close()
            async with asyncio.timeout(20):
                await socket.ended.wait()
            request_id = (await socket.head)["nvcf-reqid"]
            assert (await cancels.next_msg(10)).data.decode() == request_id


async def test_subprotocols_and_routing_by_them(platform: Platform) -> None:
    async with websocket_function(platform) as (version, service, _):
        async with h2_websockets(platform.gateway.sessions) as caller:
            said = f"authorization.{platform.keys['admin']}, function-id.{version.function_id}"
            chosen = caller.open("/", [("sec-websocket-protocol", f"{said}, v1.json")])
            assert (await chosen.head)["sec-websocket-protocol"] == "v1.json"
            plain = caller.open("/", [("sec-websocket-protocol", said)])
            assert (await plain.head)["sec-websocket-protocol"] == f"function-id.{version.function_id}"
        assert platform.keys["admin"] not in str(service.headers)


async def test_refusals(platform: Platform) -> None:
    async with websocket_function(platform) as (version, _, _tunnel):
        async with h2_websockets(platform.gateway.sessions) as caller:
            right = routing(platform, version)
            refused = caller.open("/refuse", right)
            assert (await refused.status(), (await refused.head).get("nvcf-reqid") is None) == (403, False)
            async with asyncio.timeout(20):
                await refused.ended.wait()
            assert refused.body == b"not you\n"
            assert await caller.open("/", right[1:]).status() == 401
            assert await caller.open("/", right[:1]).status() == 400
            assert await caller.open("/", right, protocol="connect-udp").status() == 501
            still = caller.open("/", right)
            await still.send("on the same connection")
            assert await still.recv() == b"on the same connection"


async def test_a_caller_that_resets_frees_the_tunnel_and_others_go_on(platform: Platform) -> None:
    async with websocket_function(platform) as (version, _, tunnel):
        async with h2_websockets(platform.gateway.sessions) as caller:
            first = caller.open("/", routing(platform, version))
            second = caller.open("/", routing(platform, version))
            for each in (first, second):
                await each.send("hello")
                assert await each.recv() == b"hello"
            assert len(tunnel.works) == 2, "each is a session of its own"
            caller.connection.reset_stream(first.number, ErrorCodes.CANCEL)
            caller.write()
            link = tunnel.links[0][0]
            await eventually(lambda: link.at_eof() or link.exception() is not None, "its link is cut")
            await second.send("still here")
            assert await second.recv() == b"still here"


async def test_a_slow_reader_holds_the_function_back(platform: Platform) -> None:
    async with websocket_function(platform) as (version, service, _):
        async with h2_websockets(platform.gateway.sessions) as caller:
            flood = caller.open("/flood", routing(platform, version))
            await flood.recv()
            caller.paused.clear()
            sent = -1
            async with asyncio.timeout(30):
                while sent != service.sent:
                    sent = service.sent
                    await asyncio.sleep(0.5)
            assert sent < 300, "75 MiB: what fits into the buffers on the way"
            caller.paused.set()
            for _ in range(sent + 4):
                await flood.recv()


async def test_a_function_without_websocket_is_recognised(platform: Platform) -> None:
    """A 2xx that is no switch must not look like an open WebSocket."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    async def wrong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")

    for serve, status in ((plain, 501), (wrong, 502)):
        version = await platform.deployed_version()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with (
                peer_worker(platform, version) as worker,
                tunnel_worker(worker, port),
                h2_websockets(platform.gateway.sessions) as caller,
            ):
                assert await caller.open("/", routing(platform, version)).status() == status


async def test_a_grpc_client_is_not_disturbed_by_the_setting(platform: Platform) -> None:
    async with grpc_channel(platform.gateway, (("function-id", "x"),)) as channel:
        with pytest.raises(Exception, match=r"UNAUTHENTICATED|INVALID_ARGUMENT"):
            await channel.call("Echo", b"")
