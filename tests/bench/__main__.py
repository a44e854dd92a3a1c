"""Run benchmarks by name: `python -m tests.bench [imports] [throughput] [bodies]` (all without a name)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from tests.bench import (
    batching,
    bodies,
    calls,
    durability,
    idempotency,
    idle,
    imports,
    install,
    isolation,
    peers,
    ratelimit,
    scaling,
    streams,
    tasks,
    telemetry,
    throughput,
    triton,
    tunnel,
    waiting,
)

BENCHMARKS: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "imports": imports.run,
    "calls": calls.run,
    "throughput": throughput.run,
    "bodies": bodies.run,
    "waiting": waiting.run,
    "tunnel": tunnel.run,
    "ratelimit": ratelimit.run,
    "batching": batching.run,
    "isolation": isolation.run,
    "streams": streams.run,
    "idle": idle.run,
    "scaling": scaling.run,
    "telemetry": telemetry.run,
}
ON_REQUEST: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "peers": peers.run,
    "triton": triton.run,
    "idempotency": idempotency.run,
    "install": install.run,
    "durability": durability.run,
    "tasks": tasks.run,
}
"""Benchmarks that install packages, take minutes or need root; not part of a run without names."""


def main() -> int:
    """Entry point."""
    names = sys.argv[1:] or list(BENCHMARKS)
    known = BENCHMARKS | ON_REQUEST
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names:
        print(f"== {name}", flush=True)
        asyncio.run(known[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
