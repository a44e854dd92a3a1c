"""Run benchmarks by name: `python -m tests.bench [imports] [throughput] [bodies]` (all without a name)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from tests.bench import bodies, imports, ratelimit, throughput, waiting

BENCHMARKS: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "imports": imports.run,
    "throughput": throughput.run,
    "bodies": bodies.run,
    "waiting": waiting.run,
    "ratelimit": ratelimit.run,
}


def main() -> int:
    """Entry point."""
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    for name in names:
        print(f"== {name}", flush=True)
        asyncio.run(BENCHMARKS[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main())
