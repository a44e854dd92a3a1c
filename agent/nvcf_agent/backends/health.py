"""Asking an instance whether it is ready (protocol.md, section 5.3)."""

import asyncio
from collections.abc import AsyncIterator

from nvcf_proto.settings import HEALTH_READY_PATH

ASK_TIMEOUT_SECONDS = 2.0
FIRST_INTERVAL_SECONDS = 0.05
LONGEST_INTERVAL_SECONDS = 0.5
READY_INTERVAL_SECONDS = 2.0
# A single missed answer may be a busy machine; so many in a row are the instance's own.
FAILURES_UNTIL_UNREADY = 3


async def ask(port: int, host: str = "127.0.0.1") -> str | None:
    """None if the health port answers the ready path with 200, else why not. One short-lived connection."""
    writer = None
    try:
        async with asyncio.timeout(ASK_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            request = f"GET {HEALTH_READY_PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
            writer.write(request.encode())
            status_line = await reader.readline()
    except TimeoutError:
        return f"no answer within {ASK_TIMEOUT_SECONDS:g} s"
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
    """Each change for ever: None once it is ready, then why it is so no longer, and so on.

    Without a deadline of its own: whoever waits knows the instance's.
    """
    while True:
        interval = FIRST_INTERVAL_SECONDS
        while await ask(port) is not None:
            await asyncio.sleep(interval)
            interval = min(LONGEST_INTERVAL_SECONDS, interval * 1.2)
        yield None
        failures, why = 0, ""
        while failures < FAILURES_UNTIL_UNREADY:
            await asyncio.sleep(READY_INTERVAL_SECONDS)
            answer = await ask(port)
            failures, why = (failures + 1, answer) if answer is not None else (0, "")
        yield why
