"""Mutated bytes at the sessions and session proxy listeners of a real gateway: no crash, no 500, no leak."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from h2.connection import H2Connection
from h2.events import ResponseReceived

from tests.support.http.session_callers import grpc_channel, routing
from tests.support.peers.tunnel import tunnel_worker
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

INPUTS = 1500
AT_ONCE = 32


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and one gateway with both listeners."""
    directory: Path = tmp_path_factory.mktemp("fuzz")
    flags = ("--sessions", "127.0.0.1:0")
    async with running_platform(directory, flags=flags) as running:
        yield running


def http2(headers: list[tuple[str, str]]) -> bytes:
    """Two calls, a ping and a reset."""
    connection = H2Connection()
    connection.initiate_connection()
    pseudo = [(":method", "POST"), (":path", "/x/y"), (":scheme", "http"), (":authority", "a")]
    for stream in (1, 3):
        connection.send_headers(stream, [*pseudo, *headers, ("content-type", "application/grpc")])
        connection.send_data(stream, b"hello" * 10, end_stream=stream == 1)
    connection.ping(b"12345678")
    connection.reset_stream(3)
    return connection.data_to_send()


def http1(headers: list[tuple[str, str]]) -> bytes:
    """A request with a body, and an upgrade."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return (
        f"POST /x HTTP/1.1\r\nHost: a\r\n{lines}Content-Length: 5\r\n\r\nhello"
        f"GET /y HTTP/1.1\r\nHost: b\r\n{lines}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nraw"
    ).encode()


CONNECT = (
    b"CONNECT /v1/proxy HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer t\r\n"
    b"X-Request-ID: 11111111-1111-4111-8111-111111111111\r\n\r\n"
)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, put in, cut out and doubled."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                changed[at:at] = chance.randbytes(chance.randint(1, 9))
            case 2:
                del changed[at : at + chance.randint(1, 20)]
            case _:
                begin = chance.randrange(len(changed) + 1)
                changed[at:at] = changed[begin : begin + chance.randint(1, 60)]
    return bytes(changed)


async def send(
    address: tuple[str, int], data: bytes, chance: random.Random, *, patience: float = 0.3
) -> str | None:
    """One input on a connection of its own; the HTTP/1.1 status of an answer within `patience` seconds."""
    found = None
    with contextlib.suppress(ConnectionError, TimeoutError):
        reader, writer = await asyncio.open_connection(*address)
        try:
            writer.write(data)
            if chance.random() < 0.5:
                writer.write_eof()
            async with asyncio.timeout(patience):
                found = re.match(rb"HTTP/1.1 (\d+)", await reader.read(4000))
        finally:
            if chance.random() < 0.5:
                writer.transport.abort()
            writer.close()
    return found[1].decode() if found else None


async def proxy_address(platform: Platform, version: Version) -> tuple[str, int]:
    """Where workers dial, learnt as a worker does."""
    async with peer_worker(platform, version) as worker:
        async with grpc_channel(platform.gateway, routing(platform, version)) as channel:
            call = channel.call("Echo", b"")
            work = await worker.pull()
            call.cancel()
            await work.ack()
    url = work.request.statefulConfig.connectionConfigs[0].http1Config.proxyURI
    host, _, port = url.removeprefix("http://").partition("/")[0].partition(":")
    return host, int(port)


@pytest.mark.parametrize("seed", [1, 2])
async def test_mutated_inputs_are_refused_or_served(platform: Platform, seed: int) -> None:
    chance = random.Random(seed)
    version = await platform.deployed_version()
    proxy = await proxy_address(platform, version)
    host, _, port = platform.gateway.sessions.partition(":")
    headers = list(routing(platform, version))
    seeds = [((host, int(port)), http2(headers)), ((host, int(port)), http1(headers)), (proxy, CONNECT)]
    statuses: Counter[str | None] = Counter()
    gate = asyncio.Semaphore(AT_ONCE)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(mutate(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", chance))
            await reader.read(4000)
        writer.close()

    async def one() -> None:
        async with gate:
            address, data = chance.choice(seeds)
            statuses[await send(address, mutate(data, chance), chance)] += 1

    function = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with (
        peer_worker(platform, version) as worker,
        tunnel_worker(worker, function.sockets[0].getsockname()[1]),
    ):
        async with asyncio.TaskGroup() as group:
            for _ in range(INPUTS):
                group.create_task(one())
    function.close()
    assert "500" not in statuses
    assert statuses["400"]
    broken = b"POST /x HTTP/1.1\r\nno header\r\n\r\n"
    assert await send((host, int(port)), broken, chance, patience=60) == "400", "it still answers"
    log = platform.gateway.child.text()
    assert "handler failed" not in log
    assert "internal error" not in log
    assert "Traceback" not in log
    assert platform.gateway.child.running


async def test_a_call_reset_in_the_bytes_that_open_it_harms_no_other_call(
    platform: Platform,
) -> None:
    version = await platform.deployed_version()
    host, _, port = platform.gateway.sessions.partition(":")
    pseudo = [(":method", "POST"), (":path", "/x/y"), (":scheme", "http"), (":authority", "a")]
    key = dict(routing(platform, version))["authorization"]
    refused = [*pseudo, ("authorization", key), ("function-id", "no-uuid")]
    connection = H2Connection()
    connection.initiate_connection()
    connection.send_headers(1, refused)
    connection.reset_stream(1)
    connection.send_headers(3, refused, end_stream=True)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(connection.data_to_send())
    answered: list[int | None] = []
    async with asyncio.timeout(10):
        while 3 not in answered:
            data = await reader.read(65536)
            assert data, "the gateway closed the connection"
            events = connection.receive_data(data)
            answered += [event.stream_id for event in events if isinstance(event, ResponseReceived)]
    writer.close()
