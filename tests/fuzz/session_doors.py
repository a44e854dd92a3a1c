"""Damaged input at the ports of sessions: the callers' one, and the one where workers dial back."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from tests.contract.gateway.test_session_fuzz import CONNECT, http1, http2
from tests.fuzz.callers_doors import AT_ONCE
from tests.fuzz.mutation import Mutator
from tests.fuzz.scene import Budget, Report, Scene, until
from tests.support.http.session_callers import grpc_channel, routing
from tests.support.peers.tunnel import tunnel_worker
from tests.support.peers.worker import peer_worker

READ_PATIENCE = 0.1


async def sessions_port(found: Scene, report: Report, budget: Budget) -> None:
    """HTTP/2 frames and HTTP/1.1 requests of callers; a peer's worker answers those that get through."""
    host, _, port = found.platform.gateway.sessions.rpartition(":")
    version = await found.platform.deployed_version("sessions")
    headers = list(routing(found.platform, version))
    inputs = [http2(headers), http1(headers)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await reader.read(4000)
        writer.close()

    function = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with (
        function,
        peer_worker(found.platform, version) as peer,
        tunnel_worker(peer, function.sockets[0].getsockname()[1]),
    ):
        await _storm(found, report, budget, ("sessions", host, int(port)), inputs)


async def proxy_port(found: Scene, report: Report, budget: Budget) -> None:
    """CONNECT requests of workers."""
    version = await found.platform.deployed_version("dialled-back")
    async with (
        peer_worker(found.platform, version) as peer,
        grpc_channel(found.platform.gateway, routing(found.platform, version)) as channel,
    ):
        call = channel.call("Echo", b"")
        work = await peer.pull()
        call.cancel()
        await work.ack()
    address = urlsplit(work.request.statefulConfig.connectionConfigs[0].http1Config.proxyURI)
    await _storm(found, report, budget, ("proxy", address.hostname or "", address.port or 0), [CONNECT])


async def _storm(
    found: Scene, report: Report, budget: Budget, at: tuple[str, str, int], inputs: list[bytes]
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
                async with asyncio.timeout(READ_PATIENCE):
                    answer = await reader.read(4000)
                if answer.startswith(b"HTTP/1."):
                    report.answered(int(answer[9:12]), answer, data)
            finally:
                if mutator.chance.random() < 0.5:
                    writer.transport.abort()
                writer.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(AT_ONCE):
            mutator = found.mutator(name, number)
            tasks.create_task(until(budget, report, lambda mutator=mutator: one(mutator)))  # type: ignore[misc]
