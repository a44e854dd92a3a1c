"""Copies of the worker that a handler makes by `os.fork()`: they end where the handler ends.

Such a copy has the worker's sockets. If it went on it would answer requests that are not its own, and outlive
the instance.
"""

from __future__ import annotations

import os
import sys
import traceback

copied = False
"""Whether this process is a copy of one that runs handlers."""


def begin() -> None:
    """Note that this process runs handlers itself."""
    global copied  # of the process
    copied = False


def _in_child() -> None:
    global copied
    copied = True


os.register_at_fork(after_in_child=_in_child)


def end_copy() -> None:
    """End this process with the exit code of the error that is being raised, if any."""
    error = sys.exc_info()[1]
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)
