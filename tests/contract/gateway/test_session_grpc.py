"""gRPC calls through sessions (protocol.md, section 7): all kinds, many on one connection, slow peers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated

from tests.support.http.session_callers import Channel, grpc_channel, routing
from tests.support.platform.gateways import Platform, eventually, running_platform
from tests.support.platform.session_function import grpc_function

pytestmark = pytest.mark.asyncio(loop_scope="module")


FLAGS = ("--sessions", "127.0.0.1:0")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and two gateways with a sessions port."""
    directory: Path = tmp_path_factory.mktemp("sessions")
    async with running_platform(directory, gateways=2, flags=FLAGS) as running:
        yield running


async def test_a_unary_call_passes_with_metadata_and_trailers(platform: Platform) -> None:
    async with grpc_function(platform) as (version, service, _tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            call = channel.call("Echo", b"hello", ("x-echo", "value"))
            assert await call == b"hello"
            initial = dict(await call.initial_metadata())
            trailing = dict(await call.trailing_metadata())
        assert initial["x-initial"] == "value"
        assert trailing["x-trailing"] == "value"
        assert trailing["x-bin"] == b"\x00\xff"
        cookie = str(initial["set-cookie"])
        assert cookie.startswith(f"nvcf-request-id={initial['nvcf-reqid']!s};")
        seen = service.metadata[-1]
        assert "authorization" not in seen
        assert "function-id" not in seen
        assert seen["nvcf-reqid"] == initial["nvcf-reqid"]


async def test_streams_pass_in_all_directions(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, _tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            parts = [part async for part in channel.down("Count", b"50 100000")]
            assert [int.from_bytes(part[:4]) for part in parts] == list(range(50))
            assert await channel.up("Total", [b"x" * 30_000] * 40) == b"1200000"
            chat = channel.both("Chat")
            for text in (b"one", b"two"):
                await chat.write(text)
                assert await chat.read() == b"re: " + text
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
            assert await chat.code() is grpc.StatusCode.OK


async def test_a_message_of_64_mib_passes_both_ways(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, _tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            message = b"0123456789abcdef" * (4 * 1024 * 1024)
            assert await channel.call("Echo", message) == message


async def test_an_error_of_the_function_passes(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, _tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.call("Fail", b"here")
    assert raised.value.code() is grpc.StatusCode.DATA_LOSS
    assert raised.value.details() == "lost: ä%\nhere"


async def test_a_deadline_and_a_cancellation_reach_the_function(platform: Platform) -> None:
    async with grpc_function(platform) as (version, service, _tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            await channel.call("Echo", b"")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.call("Hang", timeout=0.5)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await eventually(lambda: service.cancelled == 1, "the function saw the deadline")
            call = channel.call("Hang")
            await eventually(lambda: service.running == 1, "the function runs")
            call.cancel()
            await eventually(lambda: service.cancelled == 2, "the function saw the cancellation")
            assert await channel.call("Echo", b"still there") == b"still there"


async def test_all_streams_of_a_connection_share_one_session(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:

            async def talk(number: int) -> None:
                chat = channel.both("Chat")
                for turn in range(3):
                    await chat.write(b"%d %d" % (number, turn))
                    assert await chat.read() == b"re: %d %d" % (number, turn)
                await chat.done_writing()

            async with asyncio.TaskGroup() as group:
                for number in range(200):
                    group.create_task(talk(number))
        assert len(tunnel.works) == 1
        message = tunnel.works[0].request
        assert message.HasField("statefulConfig")
        assert not message.HasField("statelessConfig")
        assert message.statefulConfig.nvcfRegionOfInvoker == "local"
        assert message.statefulConfig.connectionConfigs[0].http1Config.proxyURI.endswith("/v1/proxy")
        assert message.ncaId == "account-one"


async def test_a_function_that_takes_few_streams_gets_them_in_turn(platform: Platform) -> None:
    async with grpc_function(platform, max_concurrent_streams=2) as (version, _service, tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            answers = await asyncio.gather(*(channel.call("Echo", b"%d" % number) for number in range(50)))
        assert answers == [b"%d" % number for number in range(50)]
        assert len(tunnel.works) == 1


async def test_a_function_that_renews_its_connections_loses_no_call(platform: Platform) -> None:
    # The server says GOAWAY every now and then and lets running calls finish.
    async with grpc_function(platform, max_connection_age_ms=300, max_connection_age_grace_ms=5000) as (
        version,
        _service,
        tunnel,
    ):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            for number in range(150):
                assert await channel.call("Echo", b"%d" % number) == b"%d" % number
                await asyncio.sleep(0.01)
        assert len(tunnel.links) > 2


async def test_two_connections_are_two_sessions(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, tunnel):
        metadata = routing(platform, version)
        async with (
            grpc_channel(platform.gateway, metadata) as one,
            grpc_channel(platform.gateway, metadata) as two,
        ):
            assert tuple(await asyncio.gather(one.call("Echo", b"1"), two.call("Echo", b"2"))) == (b"1", b"2")
        assert len({work.request.requestId for work in tunnel.works}) == 2


async def test_other_routing_on_one_connection_is_another_session(platform: Platform) -> None:
    async with (
        grpc_function(platform) as (first, _one, tunnel_one),
        grpc_function(platform) as (second, _two, tunnel_two),
    ):
        async with grpc_channel(platform.gateway, routing(platform, first)) as channel:
            await channel.call("Echo", b"1")
            await Channel(channel.channel, routing(platform, second)).call("Echo", b"2")
            # Without a version it is other routing too.
            await Channel(channel.channel, routing(platform, first, named=False)).call("Echo", b"3")
            await channel.call("Echo", b"4")
        assert (len(tunnel_one.works), len(tunnel_two.works)) == (2, 1)


async def test_a_slow_reader_holds_the_function_back(platform: Platform) -> None:
    async with grpc_function(platform) as (version, service, _tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            await channel.call("Echo", b"warm")
            before = platform.gateway.child.resident_mib()
            size, count = 1024 * 1024, 200
            stream = channel.down("Count", b"%d %d" % (count, size))
            assert await stream.read() is not grpc.aio.EOF
            last = -1
            while last != service.sent:
                last = service.sent
                await asyncio.sleep(0.5)
            assert service.sent < 40, "the windows of three connections, not the whole answer"
            assert platform.gateway.child.resident_mib() - before < 40
            # Others on the connection are not held up.
            assert await channel.call("Echo", b"quick", timeout=10) == b"quick"
            rest = 1
            while (part := await stream.read()) is not grpc.aio.EOF:
                assert isinstance(part, bytes)
                assert len(part) == size
                rest += 1
            assert rest == count


async def test_a_slow_function_holds_the_caller_back(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, _tunnel):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            await channel.call("Echo", b"warm")
            before = platform.gateway.child.resident_mib()
            stuck = channel.both("Stuck")
            written = 0
            with contextlib.suppress(TimeoutError):
                while written < 200:
                    async with asyncio.timeout(1):
                        await stuck.write(bytes(1024 * 1024))
                    written += 1
            assert written < 40
            assert platform.gateway.child.resident_mib() - before < 40
            assert await channel.call("Echo", b"quick", timeout=10) == b"quick"
            stuck.cancel()
            gc.collect()


async def test_a_caller_that_resets_call_after_call_is_sent_away(platform: Platform) -> None:
    """Rapid reset: thousands of streams that are given up as soon as they are opened."""
    async with grpc_function(platform) as (version, _service, tunnel):
        host, _, port = platform.gateway.sessions.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        connection = H2Connection()
        connection.initiate_connection()
        pseudo = [(":method", "POST"), (":path", "/s/m"), (":scheme", "http"), (":authority", "a")]
        headers = [*pseudo, *routing(platform, version), ("content-type", "application/grpc")]
        ended: list[ConnectionTerminated] = []
        stream, cut = 1, False
        async with asyncio.timeout(30):
            while not ended and not cut:
                for _ in range(50):
                    connection.send_headers(stream, headers)
                    connection.reset_stream(stream)
                    stream += 2
                writer.write(connection.data_to_send())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        try:
                            data = await reader.read(65536)
                        except ConnectionError:
                            # What was still being sent to a closed connection wipes out the farewell.
                            data = b""
                        cut = not data
                        events = connection.receive_data(data)
                        ended = [event for event in events if isinstance(event, ConnectionTerminated)]
        writer.close()
        assert {event.error_code for event in ended} <= {ErrorCodes.ENHANCE_YOUR_CALM}
        await eventually(
            lambda: "the caller resets too many of its calls" in platform.gateway.child.text(), "sent away"
        )
        assert stream < 20_000
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            assert await channel.call("Echo", b"others are served") == b"others are served"
        assert len(tunnel.works) <= 2
