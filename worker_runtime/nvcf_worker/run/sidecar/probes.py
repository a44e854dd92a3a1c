"""Asking a server whether it is healthy: by HTTP, gRPC (grpc.health.v1) or by connecting at all."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Literal

Protocol = Literal["http", "grpc", "tcp"]

GRPC_METHOD = "/grpc.health.v1.Health/Check"
_SERVING = 1
_HEAD_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How to ask. `endpoint` is the path (HTTP) or the name of the service (gRPC, may be empty)."""

    protocol: Protocol
    host: str
    port: int
    endpoint: str = "/"
    timeout: float = 10.0
    expected: int = 200


async def probe(check: HealthCheck) -> str | None:
    """One check. None when healthy, else why not."""
    try:
        async with asyncio.timeout(check.timeout):
            match check.protocol:
                case "http":
                    return await _http(check)
                case "grpc":
                    return await _grpc(check)
                case "tcp":
                    await _tcp(check)
                    return None
    except TimeoutError:
        return f"no answer within {check.timeout:g} s"
    except OSError as error:
        return error.strerror or type(error).__name__


async def _tcp(check: HealthCheck) -> None:
    _, writer = await asyncio.open_connection(check.host, check.port)
    await _closed(writer)


async def _http(check: HealthCheck) -> str | None:
    # A connection of its own: it tells whether the server takes new ones.
    reader, writer = await asyncio.open_connection(check.host, check.port, limit=_HEAD_LIMIT)
    try:
        host = f"[{check.host}]" if ":" in check.host else check.host
        writer.write(
            f"GET {check.endpoint} HTTP/1.1\r\nHost: {host}:{check.port}\r\n"
            "User-Agent: nvcf-worker\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode("latin-1")
        )
        await writer.drain()
        status = await _final_status(reader)
    except (ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return "its answer is no HTTP"
    finally:
        await _closed(writer)
    return None if status == check.expected else f"answered {status} instead of {check.expected}"


async def _final_status(reader: asyncio.StreamReader) -> int:
    while True:
        version, status, *_ = (await reader.readuntil(b"\n")).decode("latin-1").split(None, 2)
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        if not status.startswith("1"):
            return int(status)
        while (await reader.readuntil(b"\n")).strip():
            pass


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _grpc(check: HealthCheck) -> str | None:
    import grpc

    host = f"[{check.host}]" if ":" in check.host else check.host
    async with grpc.aio.insecure_channel(f"{host}:{check.port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            GRPC_METHOD, request_serializer=None, response_deserializer=None
        )
        try:
            answer = await call(health_request(check.endpoint), timeout=check.timeout)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
    status = health_status(bytes(answer))
    return None if status == _SERVING else f"its status is {status} instead of SERVING"


def health_request(service: str) -> bytes:
    """An encoded grpc.health.v1.HealthCheckRequest (field 1, string).

    Written out because grpcio-health-checking would tie a function image to one range of protobuf.
    Raises ValueError for a name of more than 127 bytes.
    """
    name = service.encode()
    if len(name) > 127:
        raise ValueError("the name of a gRPC service to check has 127 bytes at most")
    return b"\x0a" + bytes([len(name)]) + name if name else b""


def health_status(answer: bytes) -> int:
    """The status (field 1, enum) of an encoded HealthCheckResponse; 0 (UNKNOWN) when it has none."""
    return answer[1] if len(answer) >= 2 and answer[0] == 0x08 else 0
