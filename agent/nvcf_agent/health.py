"""Asking an instance whether it is ready (protocol.md section 5, HEALTH_PORT)."""

import asyncio

from nvcf_proto.settings import HEALTH_READY_PATH

ASK_TIMEOUT_SECONDS = 2.0
FIRST_INTERVAL_SECONDS = 0.05
LONGEST_INTERVAL_SECONDS = 0.5


async def is_ready(port: int, host: str = "127.0.0.1") -> bool:
    """Whether the health port answers the ready path with 200. One short-lived connection."""
    writer = None
    try:
        async with asyncio.timeout(ASK_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            request = f"GET {HEALTH_READY_PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
            writer.write(request.encode())
            status_line = await reader.readline()
        parts = status_line.split(b" ", 2)
        return len(parts) >= 2 and parts[0].startswith(b"HTTP/1.") and parts[1] == b"200"
    except (OSError, TimeoutError, ValueError):
        return False
    finally:
        if writer is not None:
            writer.close()


async def wait_ready(port: int) -> None:
    """Ask until it is ready. Without a deadline of its own: whoever waits knows the instance's."""
    interval = FIRST_INTERVAL_SECONDS
    while not await is_ready(port):
        await asyncio.sleep(interval)
        interval = min(LONGEST_INTERVAL_SECONDS, interval * 1.2)
