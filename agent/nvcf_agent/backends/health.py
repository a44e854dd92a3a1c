"""Asking an instance whether it is ready (protocol.md, section 5.3)."""

import asyncio
from collections.abc import AsyncIterator

from nvcf_proto.settings import HEALTH_READY_PATH

PROBE_TIMEOUT_SECONDS = 2.0
FIRST_INTERVAL_SECONDS = 0.05
LONGEST_INTERVAL_SECONDS = 0.5
READY_INTERVAL_SECONDS = 2.0
# One missed response may come from a busy machine. So many in a row mean that the instance is not ready.
FAILURES_UNTIL_UNREADY = 3


async def probe(port: int, host: str = "127.0.0.1") -> str | None:
    """Return None if the ready path answers 200, else why not. Uses one short-lived connection."""
    writer = None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            request = f"GET {HEALTH_READY_PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
            writer.write(request.encode())
            status_line = await reader.readline()
    except TimeoutError:
        return f"no answer within {PROBE_TIMEOUT_SECONDS:g} s"
    except (OSError, ValueError):
        return "no answer"
    finally:
        if writer is not None:
            writer.close()
    parts = status_line.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1."):
        return "no answer"
    return None if parts[1] == b"200" else f"HTTP {parts[1][:3].decode(errors='replace')}"


async def readiness(port: int) -> AsyncIterator[str | None]:
    """Yield each change: None once the instance is ready, then why it is not ready any more, and so on.

    There is no deadline. The caller knows the instance's.
    """
    while True:
        interval = FIRST_INTERVAL_SECONDS
        while await probe(port) is not None:
            await asyncio.sleep(interval)
            interval = min(LONGEST_INTERVAL_SECONDS, interval * 1.2)
        yield None
        failures, why = 0, ""
        while failures < FAILURES_UNTIL_UNREADY:
            await asyncio.sleep(READY_INTERVAL_SECONDS)
            answer = await probe(port)
            failures, why = (failures + 1, answer) if answer is not None else (0, "")
        yield why
