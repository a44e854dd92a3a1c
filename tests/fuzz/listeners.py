"""All doors of real processes, and how one is tried."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from tests.fuzz.callers_doors import http_port, json_bodies
from tests.fuzz.scene import Budget, Report, Scene, complaints, serves
from tests.fuzz.session_doors import proxy_port, sessions_port
from tests.fuzz.workers_doors import (
    broker_tokens,
    grpc_port,
    inline_replies,
    queue_messages,
    request_attach,
    subjects,
)

DOORS: dict[str, Callable[[Scene, Report, Budget], Awaitable[None]]] = {
    "callers' port, raw": http_port,
    "JSON bodies": json_bodies,
    "request-attach": request_attach,
    "inline replies": inline_replies,
    "broker tokens": broker_tokens,
    "broker subjects": subjects,
    "queue messages": queue_messages,
    "gRPC port": grpc_port,
    "sessions port": sessions_port,
    "session proxy": proxy_port,
}


async def attack(found: Scene, door: str, inputs: int, seconds: float) -> Report:
    """Try one door with `inputs` inputs, `seconds` at most, then see whether everything still works."""
    report = Report(door)
    before = len(complaints(found))
    await DOORS[door](found, report, Budget(time.monotonic() + seconds, inputs))
    for process in (found.platform.gateway.child, found.worker):
        if not process.running:
            report.faults.append(f"process ended: {process.text()[-2000:]}")
            return report
    await serves(found)
    report.faults += complaints(found)[before:]
    return report
