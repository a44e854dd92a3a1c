"""Moves the wall clock of a Python process that has this folder in PYTHONPATH; the monotonic one goes on.

Python imports it at its start. `python -m NAME` adds the seconds in the file NAME of the folder
NVCF_TEST_CLOCKS. It stands in for setting the machine's clock, which would move that of all other tests.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def _move(file: Path) -> None:
    wall, wall_ns = time.time, time.time_ns

    def offset() -> float:
        try:
            return float(file.read_text())
        except (OSError, ValueError):
            return 0.0

    time.time = lambda: wall() + offset()
    time.time_ns = lambda: wall_ns() + int(offset() * 1e9)


if "NVCF_TEST_CLOCKS" in os.environ and "-m" in sys.orig_argv:
    _move(Path(os.environ["NVCF_TEST_CLOCKS"]) / sys.orig_argv[sys.orig_argv.index("-m") + 1])
