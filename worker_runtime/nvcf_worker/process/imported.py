"""Whether a file runs for its definitions only: then its `serve`, `task` and `sidecar` do nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_definitions = 0


@contextmanager
def for_definitions() -> Iterator[None]:
    """Run a file for a handler that was named: `sidecar` and `task` at its end do nothing."""
    global _definitions  # a process runs one function
    _definitions += 1
    try:
        yield
    finally:
        _definitions -= 1


def for_definitions_only() -> bool:
    """Return whether a file is being run for its definitions only."""
    return _definitions > 0 or in_multiprocessing()


def in_multiprocessing() -> bool:
    """Return whether a process of multiprocessing is importing a file.

    With the start methods spawn and forkserver it runs the file again, to find the functions in it. A target
    of such a process may call `serve`.
    """
    process: Any = sys.modules.get("multiprocessing.process")
    if process is None:
        return False
    # Set while a process is prepared, and in the fork server while it imports.
    if getattr(process.current_process(), "_inheriting", False):
        return True
    if process.parent_process() is None:
        return False
    frame = sys._getframe()
    while frame.f_back is not None:
        if frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False
