"""Leave the process with the documented exit code, whatever threads and exit handlers still run."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nvcf_worker.process import exit_reason as exits
from nvcf_worker.process.exit_reason import ExitReason

log = logging.getLogger("nvcf_worker")

LEAVE_SECONDS = 5.0
"""How long threads and exit handlers may hold up the end of the interpreter."""

_FRAMES = 12


def leave_now(directory: Path, reason: ExitReason) -> None:
    """Record the reason and end the process at once. Does not return."""
    exits.record(directory, reason)
    _exit(reason.code)


def leave_soon(code: int, seconds: float = LEAVE_SECONDS) -> None:
    """Make sure that the interpreter ends with `code`, at most `seconds` after the main thread has.

    Python waits without a limit for non-daemon threads, jobs of a ThreadPoolExecutor and exit handlers. Those
    that hold it up are logged with their stacks.
    """
    ending = threading.Event()

    def watch() -> None:
        ending.wait()
        # Nothing wakes this up: a process that ends in time takes its daemon threads with it.
        time.sleep(seconds)
        log.critical(
            "the process did not end within %g s and is ended with code %d; %s", seconds, code, _held_up_by()
        )
        for child in _children():
            child.kill()
        _exit(code)

    # Started now: at the end of the interpreter no thread can be started.
    threading.Thread(target=watch, name="nvcf-leaving", daemon=True).start()
    # Called first, before Python waits for any thread; `atexit` comes after that.
    threading._register_atexit(ending.set)  # type: ignore[attr-defined]


def stacks_of(threads: Iterable[threading.Thread]) -> str:
    """Return names and stacks of threads, as text for the log."""
    frames = sys._current_frames()
    parts = []
    for thread in threads:
        frame = frames.get(thread.ident or 0)
        if frame is not None:
            stack = "".join(traceback.format_stack(frame)[-_FRAMES:])
            parts.append(f"thread {thread.name}:\n{stack}".rstrip())
    return "\n".join(parts)


def _held_up_by() -> str:
    # Python also waits for the threads of executors that are daemons, and for children of multiprocessing.
    executors: Any = sys.modules.get("concurrent.futures.thread")
    jobs = getattr(executors, "_threads_queues", {})
    held = [each for each in threading.enumerate() if not each.daemon or each in jobs]
    names = [each.name for each in held if each is not threading.main_thread()]
    names += [each.name for each in _children()]
    # The main thread's stack shows an exit handler that hangs.
    return f"still running: {', '.join(names) or 'an exit handler'}\n{stacks_of(held)}"


def _children() -> list[Any]:
    """Return the children of multiprocessing, for which Python waits as well."""
    processes: Any = sys.modules.get("multiprocessing.process")
    return list(getattr(processes, "_children", ()))


def _exit(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed, or nobody reads it
            continue
    os._exit(code)
