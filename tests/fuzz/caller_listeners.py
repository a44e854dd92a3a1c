"""Damaged input at the gateway's HTTP port for callers."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from tests.fuzz import corpus
from tests.fuzz.mutation import Mutator
from tests.fuzz.target import Budget, Report, Target, repeat
from tests.support.peers.worker import ATTACH, H1

AT_ONCE = 6
# Damaged requests often have no response: do not wait long for one.
READ_TIMEOUT = 0.3


def raw_requests(target: Target) -> list[bytes]:
    """Return whole HTTP requests, as bytes on a connection."""
    key = target.platform.keys["admin"]
    base = f"Host: localhost\r\nAuthorization: Bearer {key}\r\nConnection: close\r\nNVCF-POLL-SECONDS: 1\r\n"
    served = target.served

    def request(line: str, body: bytes = b"", extra: str = "") -> bytes:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        return f"{line} HTTP/1.1\r\n{base}{extra}{length}\r\n".encode() + body

    chunked = (
        request(f"POST {served.pexec}", extra="Transfer-Encoding: chunked\r\n") + b"4\r\nbody\r\n0\r\n\r\n"
    )
    return [
        request(f"POST {served.pexec}", b"body"),
        request(f"POST {served.exec}", corpus.EXEC_BODIES[0]),
        request("GET /v2/nvcf/functions"),
        request("POST /v2/nvcf/functions", corpus.FUNCTION_BODIES[0]),
        request("GET /any/path?a=%20b&c=%C3%A4 ", extra=f"function-id: {served.function_id}\r\n"),
        request(f"GET /v2/nvcf/pexec/status/{corpus.REQUEST}"),
        request(f"GET /v2/nvcf/results/{corpus.REQUEST}?until=9999999999&seal=aa"),
        request(f"POST {ATTACH}", corpus.RESPONSE_HEADS[0], extra=f"Content-Type: {H1}\r\n"),
        request(f"OPTIONS {served.pexec}", extra="Origin: a\r\nAccess-Control-Request-Method: PUT\r\n"),
        request(f"POST {served.pexec}", b"body", extra="Expect: 100-continue\r\nIdempotency-Key: a\r\n"),
        chunked,
    ]  # fmt: skip


async def http_port(target: Target, report: Report, budget: Budget) -> None:
    """Send raw bytes on connections. Some connections are half closed, others are aborted."""
    address = urlsplit(target.platform.gateway.url)
    inputs = raw_requests(target)

    async def one(mutator: Mutator) -> None:
        data = mutator.make(inputs)
        report.sent += 1
        try:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
        except OSError as error:
            report.faults.append(f"no connection: {error}")
            return
        try:
            for piece in mutator.pieces(data):
                writer.write(piece)
                await writer.drain()
            if mutator.chance.random() < 0.5:
                writer.write_eof()
            if mutator.chance.random() < 0.9:
                await _read_response(reader, report, data)
        except OSError:
            # The gateway closed the connection first.
            pass
        finally:
            writer.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(AT_ONCE):
            mutator = target.mutator("http", number)
            tasks.create_task(repeat(budget, report, lambda mutator=mutator: one(mutator)))  # type: ignore[misc]


async def _read_response(reader: asyncio.StreamReader, report: Report, data: bytes) -> None:
    response = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_TIMEOUT):
            response = await reader.read(65536)
    if response.startswith(b"HTTP/1."):
        report.check(int(response[9:12]), response, data)


async def json_bodies(target: Target, report: Report, budget: Budget) -> None:
    """Send damaged bodies to exec and to the management API, in intact HTTP requests."""
    platform, mutator = target.platform, target.mutator("json")
    changed = await platform.create_version("changed")
    version = f"/v2/nvcf/functions/{changed.function_id}/versions"
    deployment = f"/v2/nvcf/deployments/functions/{changed.function_id}/versions/{changed.id}"
    endpoints = [
        (target.served.exec, corpus.EXEC_BODIES),
        ("/v2/nvcf/functions", corpus.FUNCTION_BODIES),
        (version, corpus.FUNCTION_BODIES),
        (deployment, corpus.DEPLOYMENT_BODIES),
        ("/v2/nvcf/assets", [corpus.document({"contentType": "text/plain", "description": "d"})]),
    ]

    async def one() -> None:
        path, good = mutator.chance.choice(endpoints)
        data = mutator.make(good)
        report.sent += 1
        headers = platform.authorization() | {"NVCF-POLL-SECONDS": "1"}
        async with platform.session.post(platform.gateway.url + path, data=data, headers=headers) as response:
            report.check(response.status, await response.read(), data)

    await repeat(budget, report, one)


def printable(data: bytes) -> str:
    """Return the part of `data` that a client library accepts as the value of a header."""
    return "".join(filter(str.isprintable, data.decode("ascii", "ignore")))[:4000].strip()
