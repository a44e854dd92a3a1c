"""C15: a caller that shuts down its sending side after the request got no answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.waiting import eventually

FUNCTION = """
import asyncio, os
from nvcf_worker import Request

async def slow(request: Request) -> str:
    body = await request.read()
    with open(os.environ["NOTES"], "a") as file:
        file.write("began\\n")
    try:
        await asyncio.sleep(float(body[:4].decode()))
    except asyncio.CancelledError:
        with open(os.environ["NOTES"], "a") as file:
            file.write("cancelled\\n")
        raise
    return f"{len(body)} bytes"
"""


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with running_platform(tmp_path) as started:
        yield started


async def served(platform: Platform, directory: Path) -> Version:
    """Deploy the function, and start its worker."""
    (directory / "function.py").write_text(FUNCTION)
    version = await platform.deployed_version(keep_queued=False)
    worker = await platform.start_worker(
        version, directory / "function.py", "slow", environment={"NOTES": str(directory / "notes")}
    )
    await eventually(lambda: "pulling requests" in worker.text(), "ready", story=worker.text)
    return version


class Caller:
    """A raw connection with one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, platform: Platform) -> Caller:
        """Connect to the gateway."""
        host, _, port = platform.gateway.url.removeprefix("http://").rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    def send(self, platform: Platform, line: str, body: bytes = b"", *, missing: int = 0) -> None:
        """Send a request, perhaps with a body that is `missing` bytes too short."""
        key = platform.authorization()["Authorization"]
        head = f"{line} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n"
        self.writer.write(f"{head}Content-Length: {len(body) + missing}\r\n\r\n".encode() + body)

    async def rest(self) -> bytes:
        """Read until the gateway closes; return the final response."""
        async with asyncio.timeout(30):
            data = await self.reader.read()
        self.writer.close()
        while data.startswith(b"HTTP/1.1 100 "):
            data = data.partition(b"\r\n\r\n")[2]
        return data


@pytest.mark.parametrize("size", [4, 300_000])
async def test_c15_a_half_closed_call_is_answered(platform: Platform, tmp_path: Path, size: int) -> None:
    version = await served(platform, tmp_path)
    caller = await Caller.connect(platform)
    caller.send(platform, f"POST {version.pexec}", b"1.50".ljust(size, b"x"))
    caller.writer.write_eof()
    answer = await caller.rest()
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert answer.endswith(f"{size} bytes".encode())


async def test_c15_half_closed_later_and_without_a_function(platform: Platform, tmp_path: Path) -> None:
    version = await served(platform, tmp_path)
    caller = await Caller.connect(platform)
    caller.send(platform, f"POST {version.pexec}", b"1.50")
    await asyncio.sleep(0.5)  # in the middle of the call, most likely; the test does not depend on it
    caller.writer.write_eof()
    assert (await caller.rest()).endswith(b"4 bytes")
    other = await Caller.connect(platform)
    other.send(platform, "GET /health")
    other.writer.write_eof()
    assert (await other.rest()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("reset", [False, True])
async def test_c15_a_caller_that_leaves_is_still_noticed(
    platform: Platform, tmp_path: Path, reset: bool
) -> None:
    version = await served(platform, tmp_path)
    caller = await Caller.connect(platform)
    caller.send(platform, f"POST {version.pexec}", b"60.0")
    notes = tmp_path / "notes"
    await eventually(lambda: notes.exists() and "began" in notes.read_text(), "the function runs")
    if reset:
        connection: socket.socket = caller.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    caller.writer.close()
    await eventually(lambda: notes.exists() and "cancelled" in notes.read_text(), "it is cancelled", 20)


async def test_c15_half_a_request_gets_nothing(platform: Platform, tmp_path: Path) -> None:
    version = await served(platform, tmp_path)
    caller = await Caller.connect(platform)
    caller.send(platform, f"POST {version.pexec}", b"0.10", missing=10)
    caller.writer.write_eof()
    assert b" 200 " not in await caller.rest()
    await platform.queue_is_empty(version)
