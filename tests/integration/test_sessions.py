"""Sessions end to end: unmodified grpcio and websockets on both sides, real gateways, broker and workers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from nvcf_proto.ids import new_id
from tests.functions.grpc_service import Service, start_service
from tests.functions.websocket_service import start_websockets
from tests.support.http.session_callers import Channel, grpc_channel, routing
from tests.support.platform.gateways import Platform, Version, eventually, running_platform
from tests.support.platform.processes import Child

pytestmark = pytest.mark.asyncio(loop_scope="module")

FUNCTIONS = Path(__file__).parent.parent / "functions"
FLAGS = ("--sessions", "127.0.0.1:0", "--ack-wait", "12")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Run a broker and one gateway with a sessions port."""
    directory: Path = tmp_path_factory.mktemp("sessions")
    async with running_platform(directory, flags=FLAGS) as running:
        yield running


@contextlib.asynccontextmanager
async def grpc_function(
    platform: Platform, *, workers: int = 1, concurrency: int = 1
) -> AsyncIterator[tuple[Version, Service, list[Child]]]:
    """Deploy a version whose workers have a gRPC server next to them."""
    version = await platform.deployed_version()
    service, server, port = await start_service()
    started = [
        await platform.start_worker(
            version,
            FUNCTIONS / "echo.py",
            "echo",
            concurrency=concurrency,
            environment={"INFERENCE_PORT": str(port)},
        )
        for _ in range(workers)
    ]
    try:
        yield version, service, started
    finally:
        for worker in started:
            worker.kill()
        await server.stop(0)


async def session_id(channel: Channel) -> str:
    """Return the id of the channel's session."""
    call = channel.call("Echo", b"")
    await call
    return str(dict(await call.initial_metadata())["nvcf-reqid"])


async def deadline_exceeded(channel: Channel) -> None:
    """Make a call to which the function never responds."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.call("Hang", timeout=0.5)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def call_everything(channel: Channel, service: Service) -> None:
    """Make all kinds of calls. No call object is left, because it would keep the connection open."""
    assert await channel.call("Echo", b"hello") == b"hello"
    parts = [part async for part in channel.down("Count", b"30 100000")]
    assert [int.from_bytes(part[:4]) for part in parts] == list(range(30))
    assert await channel.up("Total", [b"x" * 30_000] * 40) == b"1200000"
    chats = [channel.both("Chat") for _ in range(50)]
    for chat in chats:
        await chat.write(b"x")
    for chat in chats:
        assert await chat.read() == b"re: x"
        await chat.done_writing()
    message = bytes(64 * 1024 * 1024)
    assert await channel.call("Echo", message) == message
    await deadline_exceeded(channel)
    await eventually(lambda: service.cancelled == 1, "the function saw the deadline")
    call = channel.call("Hang")
    await eventually(lambda: service.running == 1, "the function runs")
    call.cancel()
    await eventually(lambda: service.cancelled == 2, "the function saw the cancellation")


async def test_grpc_in_all_its_forms(platform: Platform) -> None:
    async with grpc_function(platform) as (version, service, _workers):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            await call_everything(channel, service)
            gc.collect()
        await platform.queue_is_empty(version)


async def test_a_session_uses_a_slot_until_its_caller_disconnects(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, _workers):
        metadata = routing(platform, version)
        async with grpc_channel(platform.gateway, metadata) as second:
            async with grpc_channel(platform.gateway, metadata) as first:
                assert await first.call("Echo", b"1") == b"1"
                waiting = asyncio.ensure_future(echo(second))
                done, _ = await asyncio.wait({waiting}, timeout=1)
                assert not done
            # The bound is the assertion: without the caller's end the worker keeps the slot for 30 s.
            async with asyncio.timeout(25):
                assert await waiting == b"2"


async def echo(channel: Channel) -> bytes:
    """Make one call."""
    return await channel.call("Echo", b"2")


async def test_websockets_on_both_ports(platform: Platform) -> None:
    version = await platform.deployed_version()
    _service, server, port = await start_websockets()
    worker = await platform.start_worker(
        version, FUNCTIONS / "echo.py", "echo", environment={"INFERENCE_PORT": str(port)}
    )
    try:
        for address in (platform.gateway.sessions, platform.gateway.url.removeprefix("http://")):
            headers = dict(routing(platform, version))
            async with connect(f"ws://{address}/", additional_headers=headers, max_size=None) as caller:
                for message in ("text", bytes(2 * 1024 * 1024)):
                    await caller.send(message)
                    assert await caller.recv() == message
        await platform.queue_is_empty(version)
    finally:
        worker.kill()
        server.close()


async def unavailable(call: grpc.aio.UnaryUnaryCall[bytes, bytes]) -> None:
    """Assert that the call fails because its worker or gateway is gone."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_killed_worker_is_replaced_by_the_next_call(platform: Platform) -> None:
    async with grpc_function(platform) as (version, service, workers):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            first = await session_id(channel)
            call = channel.call("Hang")
            await eventually(lambda: service.running == 1, "the function runs")
            environment = {"INFERENCE_PORT": str(service.port)}
            workers.append(
                await platform.start_worker(version, FUNCTIONS / "echo.py", "echo", environment=environment)
            )
            workers[0].kill()
            await unavailable(call)
            assert await session_id(channel) != first
            del call
            gc.collect()
        # The session of the killed worker goes to the other one. The gateway refuses its connection,
        # so that the worker acknowledges the message.
        await platform.queue_is_empty(version)


async def test_a_killed_gateway_does_not_end_the_session(platform: Platform) -> None:
    doomed = await platform.start_gateway(*FLAGS)
    async with grpc_function(platform, workers=2) as (version, service, _workers):
        metadata = routing(platform, version)
        async with grpc_channel(doomed, metadata) as channel:
            session = await session_id(channel)
            call = channel.call("Hang")
            await eventually(lambda: service.running == 1, "the function runs")
            doomed.child.kill()
            await unavailable(call)
        back = (*metadata, ("nvcf-request-id", session))
        async with grpc_channel(platform.gateway, back) as channel:
            assert await session_id(channel) == session
        await platform.queue_is_empty(version)


async def test_a_gateway_that_is_stopped_leaves_the_session_to_another(platform: Platform) -> None:
    leaving = await platform.start_gateway(*FLAGS)
    async with grpc_function(platform) as (version, service, _workers):
        metadata = routing(platform, version)
        async with grpc_channel(leaving, metadata) as channel:
            session = await session_id(channel)
            chat = channel.both("Chat")
            await chat.write(b"1")
            assert await chat.read() == b"re: 1"
            leaving.child.kill(signal.SIGTERM)
            # Running calls may finish.
            await chat.write(b"2")
            assert await chat.read() == b"re: 2"
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
            del chat
            gc.collect()
            assert await leaving.child.wait() == 0
        back = (*metadata, ("nvcf-request-id", session))
        async with grpc_channel(platform.gateway, back) as channel:
            assert await session_id(channel) == session
        await platform.queue_is_empty(version)
        assert service.running == 0


async def test_a_function_without_a_port_is_reported(platform: Platform) -> None:
    version = await platform.deployed_version()
    worker = await platform.start_worker(version, FUNCTIONS / "echo.py", "echo")
    async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.call("Echo", b"x")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "INFERENCE_PORT" in str(raised.value.details())
    await platform.queue_is_empty(version)
    worker.kill()


async def test_a_function_that_is_not_running_is_reported(platform: Platform) -> None:
    version = await platform.deployed_version()
    environment = {"INFERENCE_PORT": "1"}
    worker = await platform.start_worker(version, FUNCTIONS / "echo.py", "echo", environment=environment)
    async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.call("Echo", b"x")
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "port 1" in str(raised.value.details())
    worker.kill()


async def test_a_server_in_the_workers_own_process(platform: Platform) -> None:
    version = await platform.deployed_version()
    worker = await platform.start_worker(version, FUNCTIONS / "session_server.py")
    async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
        assert await channel.call("Echo", b"hello") == b"in process: hello"
    worker.kill()


async def talk_while_draining(channel: Channel, worker: Child) -> None:
    """Finish a stream and make a new call, both after SIGTERM."""
    chat = channel.both("Chat")
    await chat.write(b"1")
    assert await chat.read() == b"re: 1"
    worker.kill(signal.SIGTERM)
    await eventually(lambda: "leaving" in worker.text(), "the worker drains")
    await chat.write(b"2")
    assert await chat.read() == b"re: 2"
    assert await channel.call("Echo", b"3") == b"3"
    await chat.done_writing()
    assert await chat.read() is grpc.aio.EOF


async def test_a_drained_worker_lets_its_session_finish(platform: Platform) -> None:
    async with grpc_function(platform) as (version, _service, workers):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            await talk_while_draining(channel, workers[0])
            gc.collect()
        assert await workers[0].wait() == 0
        await platform.queue_is_empty(version)


async def test_a_slow_reader_bounds_the_memory_of_all(platform: Platform) -> None:
    async with grpc_function(platform) as (version, service, workers):
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            await channel.call("Echo", b"warm")
            gateway, worker = platform.gateway.child, workers[0]
            before = gateway.resident_mib(), worker.resident_mib()
            stream = channel.down("Count", b"300 1048576")
            assert await stream.read() is not grpc.aio.EOF
            last = -1
            while last != service.sent:
                last = service.sent
                await asyncio.sleep(0.5)
            assert service.sent < 60
            assert gateway.resident_mib() - before[0] < 48
            assert worker.resident_mib() - before[1] < 48
            stream.cancel()


async def test_an_instance_id_serves_again_after_a_session(platform: Platform) -> None:
    version = await platform.deployed_version()
    service, server, port = await start_service()
    instance = new_id()
    environment = {"INFERENCE_PORT": str(port)}
    for _ in range(2):
        worker = await platform.start_worker(
            version, FUNCTIONS / "echo.py", "echo", instance_id=instance, environment=environment
        )
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            assert await channel.call("Echo", b"x") == b"x"
            worker.kill()
            await worker.wait()
    assert service.running == 0
    await server.stop(0)
