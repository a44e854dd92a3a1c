"""Damaged input at the port of the callers."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from tests.fuzz import corpus
from tests.fuzz.mutation import Mutator
from tests.fuzz.scene import Budget, Report, Scene, until
from tests.support.peers.worker import ATTACH, H1

AT_ONCE = 6
READ_PATIENCE = 0.3


def raw_requests(found: Scene) -> list[bytes]:
    """Whole HTTP requests, as bytes on a connection."""
    key = found.platform.keys["admin"]
    base = f"Host: localhost\r\nAuthorization: Bearer {key}\r\nConnection: close\r\nNVCF-POLL-SECONDS: 1\r\n"
    served = found.served

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


async def http_port(found: Scene, report: Report, budget: Budget) -> None:
    """Raw bytes on connections, sometimes half closed, sometimes torn off."""
    address = urlsplit(found.platform.gateway.url)
    inputs = raw_requests(found)

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
                await _read_answer(reader, report, data)
        except OSError:
            # The gateway closed it first.
            pass
        finally:
            writer.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(AT_ONCE):
            mutator = found.mutator("http", number)
            tasks.create_task(until(budget, report, lambda mutator=mutator: one(mutator)))  # type: ignore[misc]


async def _read_answer(reader: asyncio.StreamReader, report: Report, data: bytes) -> None:
    answer = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_PATIENCE):
            answer = await reader.read(65536)
    if answer.startswith(b"HTTP/1."):
        report.answered(int(answer[9:12]), answer, data)


async def json_bodies(found: Scene, report: Report, budget: Budget) -> None:
    """Bodies of exec and of the management API, with intact HTTP around them."""
    platform, mutator = found.platform, found.mutator("json")
    doomed = await platform.create_version("doomed")
    version = f"/v2/nvcf/functions/{doomed.function_id}/versions"
    deployment = f"/v2/nvcf/deployments/functions/{doomed.function_id}/versions/{doomed.id}"
    doors = [
        (found.served.exec, corpus.EXEC_BODIES),
        ("/v2/nvcf/functions", corpus.FUNCTION_BODIES),
        (version, corpus.FUNCTION_BODIES),
        (deployment, corpus.DEPLOYMENT_BODIES),
        ("/v2/nvcf/agents/worker-tokens", [corpus.document({"instanceId": corpus.REQUEST})]),
        ("/v2/nvcf/assets", [corpus.document({"contentType": "text/plain", "description": "d"})]),
    ]

    async def one() -> None:
        path, good = mutator.chance.choice(doors)
        data = mutator.make(good)
        report.sent += 1
        headers = platform.authorization() | {"NVCF-POLL-SECONDS": "1"}
        async with platform.session.post(platform.gateway.url + path, data=data, headers=headers) as response:
            report.answered(response.status, await response.read(), data)

    await until(budget, report, one)


def printable(data: bytes) -> str:
    """What a well-behaved client library lets through as the value of a header."""
    return "".join(filter(str.isprintable, data.decode("ascii", "ignore")))[:4000].strip()
