"""`python -m tests.soak [--calls N]`: print what grows under keyed calls and what is left of it."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.soak.run import run


def main() -> int:
    """Entry point; the status is 1 if a call was not answered."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Watch what grows.")
    parser.add_argument("--calls", type=int, default=200_000, metavar="N", help="keyed calls to make")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(run(Path(folder), arguments.calls))
    sys.stdout.write(report.table() + "\n")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
