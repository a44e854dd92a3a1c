"""Health of the user's server: checks by HTTP, gRPC (grpc.health.v1) or TCP, and what follows from them."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from dataclasses import dataclass, field
from typing import Literal

Protocol = Literal["http", "grpc", "tcp"]

GRPC_METHOD = "/grpc.health.v1.Health/Check"
_SERVING = 1
_HEAD_LIMIT = 64 * 1024

FAILURES_TO_LOSE = 3
"""Failed checks in a row after which a ready server is lost: one slow response must not stop the queue."""

START_SECONDS = 10.0
START_PAUSE = 0.1
PAUSE = 1.0


class Change(enum.Enum):
    """What a check has changed."""

    NOTHING = "nothing"
    READY = "ready"
    LOST = "lost"
    GIVEN_UP = "given up"


@dataclass
class Readiness:
    """Decides from the checks of one server whether it is ready. No I/O; seconds of any steady clock.

    A server that is not ready for `ready_timeout` seconds, counted from its start or from its loss, is given
    up. A ready server is checked every `interval` seconds.
    """

    ready_timeout: float
    interval: float
    since: float
    ready: bool = False
    _failures: int = field(default=0, init=False)

    def checked(self, healthy: bool, now: float) -> Change:
        """Take the result of one check, and return what it has changed."""
        if healthy:
            self._failures = 0
            change = Change.NOTHING if self.ready else Change.READY
            self.ready = True
            return change
        self._failures += 1
        if self.ready:
            if self._failures < FAILURES_TO_LOSE:
                return Change.NOTHING
            self.ready = False
            self.since = now
            return Change.LOST
        return Change.GIVEN_UP if now - self.since >= self.ready_timeout else Change.NOTHING

    def lost(self, now: float) -> bool:
        """Note that requests do not reach the server, and return whether it was ready."""
        was_ready, self.ready = self.ready, False
        if was_ready:
            self.since = now
        return was_ready

    def pause(self, now: float) -> float:
        """Return the seconds until the next check."""
        if self.ready:
            # After a failed check the next one follows soon.
            return min(self.interval, PAUSE) if self._failures else self.interval
        pause = START_PAUSE if now - self.since < START_SECONDS else PAUSE
        return max(0.0, min(pause, self.since + self.ready_timeout - now))


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How to check. `endpoint` is the path (HTTP) or the service's name (gRPC, may be empty).

    timeout: seconds for one check. expected: HTTP status of a healthy server.
    """

    protocol: Protocol
    host: str
    port: int
    endpoint: str = "/"
    timeout: float = 10.0
    expected: int = 200


async def probe(check: HealthCheck) -> str | None:
    """Check once. Return None if the server is healthy, else the reason why it is not."""
    try:
        async with asyncio.timeout(check.timeout):
            match check.protocol:
                case "http":
                    return await _http(check)
                case "grpc":
                    return await _grpc(check)
                case "tcp":
                    _, writer = await asyncio.open_connection(check.host, check.port)
                    await _closed(writer)
                    return None
    except TimeoutError:
        return f"no response within {check.timeout:g} s"
    except OSError as error:
        return error.strerror or type(error).__name__


async def _http(check: HealthCheck) -> str | None:
    # Imported here so that the settings can be read without it.
    import aiohttp
    from yarl import URL

    url = URL(f"http://{_authority(check)}{check.endpoint}", encoded=True)
    headers = {"User-Agent": "nvcf-worker", "Connection": "close"}
    try:
        # A new connection for each check, to see whether the server accepts connections.
        async with (
            aiohttp.ClientSession(headers=headers, max_field_size=_HEAD_LIMIT) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            status = response.status
    except (aiohttp.ClientResponseError, aiohttp.ServerDisconnectedError):
        return "its response is not HTTP"
    return None if status == check.expected else f"responded {status} instead of {check.expected}"


def _authority(check: HealthCheck) -> str:
    return f"[{check.host}]:{check.port}" if ":" in check.host else f"{check.host}:{check.port}"


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _grpc(check: HealthCheck) -> str | None:
    import grpc

    from nvcf_worker.control.config import WITHOUT_PROXY

    async with grpc.aio.insecure_channel(_authority(check), WITHOUT_PROXY) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            GRPC_METHOD, request_serializer=None, response_deserializer=None
        )
        try:
            response = await call(health_request(check.endpoint), timeout=check.timeout)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
    status = health_status(bytes(response))
    return None if status == _SERVING else f"its status is {status} instead of SERVING"


def health_request(service: str) -> bytes:
    """Encode a grpc.health.v1.HealthCheckRequest (field 1, string).

    It is encoded by hand because grpcio-health-checking would limit a function image to one range of protobuf
    versions. Raises ValueError for a name of more than 127 bytes.
    """
    name = service.encode()
    if len(name) > 127:
        raise ValueError("the name of a gRPC service to check may have at most 127 bytes")
    return b"\x0a" + bytes([len(name)]) + name if name else b""


def health_status(response: bytes) -> int:
    """Return the status (field 1, enum) of an encoded HealthCheckResponse; 0 (UNKNOWN) if it has none."""
    return response[1] if len(response) >= 2 and response[0] == 0x08 else 0
