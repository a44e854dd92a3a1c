"""Memory of waiting callers, and of requests that are kept for callers that no longer wait."""

from __future__ import annotations

import asyncio
import resource
import tempfile
from pathlib import Path

from tests.support.platform.gateways import Platform, Version, messages_in, running_platform

CALLERS = 10_000
KEPT = 5_000
AT_ONCE = 250


async def run() -> None:
    """Measure both."""
    await _waiting()
    await _kept()


async def _kept() -> None:
    """Make calls that nobody serves, each on a connection of its own, and compare as below."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_platform(Path(folder)) as platform:
            version = await platform.deployed_version()
            headers = {**platform.authorization(), "NVCF-POLL-SECONDS": "1", "Connection": "close"}

            async def calls(count: int) -> None:
                async def call() -> None:
                    url = platform.gateway.url + version.pexec
                    async with platform.session.post(url, data=b"x" * 100, headers=headers) as response:
                        assert response.status == 202, await response.text()

                for _ in range(0, count, AT_ONCE):
                    await asyncio.gather(*(call() for _ in range(AT_ONCE)))

            await calls(2 * AT_ONCE)
            before = platform.gateway.child.resident_mib()
            await calls(KEPT)
            after = platform.gateway.child.resident_mib()
    print(
        f"{KEPT} kept requests: {(after - before) * 1024 / KEPT:.1f} KiB each "
        f"(gateway {before:.0f} -> {after:.0f} MiB resident)"
    )


async def _waiting() -> None:
    """Open connections with one queued request each, and compare the gateway's resident memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CALLERS + 1000
    if hard < wanted:
        print(f"skipped: at most {hard} open files are allowed here, {wanted} are needed")
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as folder:
        async with running_platform(Path(folder)) as platform:
            version = await platform.deployed_version()
            host, port = platform.gateway.url.removeprefix("http://").split(":")
            key = platform.keys["admin"]
            head = (
                f"POST {version.pexec} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
                "NVCF-POLL-SECONDS: 600\r\nContent-Length: 100\r\n\r\n"
            ).encode() + b"x" * 100
            writers = []
            # The first ones make buffers and caches grow once.
            counted_from = 500
            before = 0.0
            for number in range(CALLERS + counted_from):
                if number == counted_from:
                    await _queued(platform, version, counted_from)
                    before = platform.gateway.child.resident_mib()
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(head)
                writers.append(writer)
            await _queued(platform, version, CALLERS + counted_from)
            after = platform.gateway.child.resident_mib()
            print(
                f"{CALLERS} waiting callers: {(after - before) * 1024 / CALLERS:.1f} KiB each "
                f"(gateway {before:.0f} -> {after:.0f} MiB resident)"
            )
            for writer in writers:
                writer.transport.abort()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _queued(platform: Platform, version: Version, count: int) -> None:
    client = await platform.broker_client()
    async with asyncio.timeout(120):
        while await messages_in(client, f"rq_local_{version.id}") < count:
            await asyncio.sleep(0.05)
    await client.close()
