"""The listeners of the processes under test."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from tests.fuzz.caller_listeners import http_port, json_bodies
from tests.fuzz.session_listeners import proxy_port, sessions_port
from tests.fuzz.target import Budget, Report, Target, check_serving, complaints
from tests.fuzz.worker_listeners import (
    broker_tokens,
    grpc_port,
    inline_replies,
    queue_messages,
    request_attach,
    subjects,
)

LISTENERS: dict[str, Callable[[Target, Report, Budget], Awaitable[None]]] = {
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


async def attack(target: Target, listener: str, inputs: int, seconds: float) -> Report:
    """Send at most `inputs` inputs in `seconds` to one listener, then check that the processes still work."""
    report = Report(listener)
    before = len(complaints(target))
    await LISTENERS[listener](target, report, Budget(time.monotonic() + seconds, inputs))
    for process in (target.platform.gateway.child, target.worker):
        if not process.running:
            report.faults.append(f"process ended: {process.text()[-2000:]}")
            return report
    await check_serving(target)
    report.faults += complaints(target)[before:]
    return report
