"""Run chaos tests for a long time: `python -m tests.chaos [--seconds S] [--seed N] [--nodes N]`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.run import CALLERS, run


def main() -> int:
    """Return exit code 1 if a call was lost or got a wrong result."""
    options = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    options.add_argument("--seconds", type=float, default=300.0)
    options.add_argument("--seed", type=int, default=int(time.time()))
    options.add_argument("--nodes", type=int, default=3, help="broker nodes: 1 or 3")
    options.add_argument("--callers", type=int, default=CALLERS)
    options.add_argument("--keep", type=Path, help="directory for logs and stores (default: a temporary one)")
    chosen = options.parse_args()
    sys.stdout.write(f"seed {chosen.seed}, {chosen.seconds:g} s, {chosen.nodes} broker nodes\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as temporary:
        directory = chosen.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        counts, text = asyncio.run(
            run(directory, chosen.seconds, chosen.seed, nodes=chosen.nodes, callers=chosen.callers)
        )
    sys.stdout.write(text + "\n")
    return 1 if counts.lost or counts.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
