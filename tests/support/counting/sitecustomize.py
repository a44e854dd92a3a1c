"""Counts the function calls of a process that has this folder in PYTHONPATH, from one SIGUSR2 to the next.

Python imports it at its start. The folder in NVCF_TEST_COUNTS gets `PID.on` at the first signal, and at the
second the file `PID`, which `pstats` reads.
"""

from __future__ import annotations

import cProfile
import os
import signal
from pathlib import Path


def _watch(folder: Path) -> None:
    profile = cProfile.Profile()
    begun = folder / f"{os.getpid()}.on"

    def on_signal(_number: int, _frame: object) -> None:
        if not begun.exists():
            begun.touch()
            profile.enable()
            return
        profile.disable()
        part = folder / f"{os.getpid()}.part"
        profile.dump_stats(part)
        part.rename(folder / str(os.getpid()))

    signal.signal(signal.SIGUSR2, on_signal)


if "NVCF_TEST_COUNTS" in os.environ:
    _watch(Path(os.environ["NVCF_TEST_COUNTS"]))
