"""Damaged input at the session ports: the one for callers and the one to which workers connect."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from tests.contract.gateway.test_session_fuzz import CONNECT, http1, http2
from tests.fuzz.caller_listeners import AT_ONCE
from tests.fuzz.mutation import Mutator
from tests.fuzz.target import Budget, Report, Target, repeat
from tests.support.http.session_callers import grpc_channel, routing
from tests.support.peers.tunnel import tunnel_worker
from tests.support.peers.worker import peer_worker

# Damaged requests often have no response: do not wait long for one.
READ_TIMEOUT = 0.1


async def sessions_port(target: Target, report: Report, budget: Budget) -> None:
    """Send HTTP/2 frames and HTTP/1.1 requests as callers do. A peer worker serves the valid ones."""
    host, _, port = target.platform.gateway.sessions.rpartition(":")
    version = await target.platform.deployed_version("sessions")
    headers = list(routing(target.platform, version))
    inputs = [http2(headers), http1(headers)]

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await reader.read(4000)
        writer.close()

    function = await asyncio.start_server(respond, "127.0.0.1", 0)
    async with (
        function,
        peer_worker(target.platform, version) as peer,
        tunnel_worker(peer, function.sockets[0].getsockname()[1]),
    ):
        await _storm(target, report, budget, ("sessions", host, int(port)), inputs)


async def proxy_port(target: Target, report: Report, budget: Budget) -> None:
    """Send CONNECT requests as workers do."""
    version = await target.platform.deployed_version("connected")
    async with (
        peer_worker(target.platform, version) as peer,
        grpc_channel(target.platform.gateway, routing(target.platform, version)) as channel,
    ):
        call = channel.call("Echo", b"")
        work = await peer.pull()
        call.cancel()
        await work.ack()
    address = urlsplit(work.request.statefulConfig.connectionConfigs[0].http1Config.proxyURI)
    await _storm(target, report, budget, ("proxy", address.hostname or "", address.port or 0), [CONNECT])


async def _storm(
    target: Target, report: Report, budget: Budget, at: tuple[str, str, int], inputs: list[bytes]
) -> None:
    name, host, port = at

    async def one(mutator: Mutator) -> None:
        data = mutator.make(inputs)
        report.sent += 1
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                for piece in mutator.pieces(data):
                    writer.write(piece)
                if mutator.chance.random() < 0.5:
                    writer.write_eof()
                async with asyncio.timeout(READ_TIMEOUT):
                    response = await reader.read(4000)
                if response.startswith(b"HTTP/1."):
                    report.check(int(response[9:12]), response, data)
            finally:
                if mutator.chance.random() < 0.5:
                    writer.transport.abort()
                writer.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(AT_ONCE):
            mutator = target.mutator(name, number)
            tasks.create_task(repeat(budget, report, lambda mutator=mutator: one(mutator)))  # type: ignore[misc]
