"""Watching over a task's main function from a thread beside it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from nvcf_worker.process import exit_reason as exits
from nvcf_worker.tasks.outcome import Stop, stopped
from nvcf_worker.tasks.progress import ProgressFile
from nvcf_worker.tasks.settings import TaskSettings
from nvcf_worker.tasks.timing import Due, Timing

log = logging.getLogger("nvcf_worker")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
NOTICE_INTERVAL = 0.5


class Supervisor:
    """Heartbeats, maximum run time, grace period, signals and notices.

    Signals reach it through a wake-up descriptor, so they count even while main is deep in a library that
    does not return to Python. Main stays in the main thread, where libraries expect it.
    """

    def __init__(
        self,
        settings: TaskSettings,
        progress: ProgressFile,
        notice: Path | None,
        tell: Callable[[], None],
    ) -> None:
        self.stop: Stop | None = None
        self.why = ""
        self._settings = settings
        self._progress = progress
        self._notice = notice
        self._tell = tell
        self._signals = 0
        self._over = False
        self._timing = Timing(
            time.monotonic(),
            heartbeat=settings.heartbeat_seconds,
            max_seconds=settings.max_seconds,
            grace=settings.grace_seconds,
        )
        self._reader, self._writer = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="nvcf-task-supervisor", daemon=True)

    def start(self) -> None:
        """Begin. Call it from the main thread."""
        self._writer.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            for number in SIGNALS:
                signal.signal(number, _ignored)
        self._thread.start()

    def finish(self) -> None:
        """Main and everything after it is over."""
        self._over = True
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
        self._writer.send(b"\0")
        self._thread.join()
        self._reader.close()
        self._writer.close()

    def _run(self) -> None:
        self._progress.beat()
        while not self._over:
            now = time.monotonic()
            for due in self._timing.due(now):
                self._act(due, now)
            pause = self._timing.pause(now)
            if self._notice is not None and self.stop is None:
                if self._notice.exists():
                    self._end(Stop.TERMINATED, f"notice of termination in {self._notice}", now)
                pause = min(pause, NOTICE_INTERVAL)
            self._reader.settimeout(max(pause, 0.001))
            try:
                received = self._reader.recv(64)
            except TimeoutError:
                continue
            for number in received:
                self._signalled(number)

    def _act(self, due: Due, now: float) -> None:
        match due:
            case Due.BEAT:
                self._progress.beat()
            case Due.STOP:
                limit = self._settings.max_seconds
                self._end(Stop.MAX_RUNTIME, f"the maximum run time of {limit:g} s is over", now)
            case Due.FORCE:
                self._force("; it did not end within its grace period")

    def _signalled(self, number: int) -> None:
        if number not in SIGNALS:
            return
        name = signal.Signals(number).name
        if number != signal.SIGUSR1:
            self._signals += 1
        if self._signals > 1:
            log.critical("second signal; leaving now")
            self._force("; a second signal ended it at once", 128 + number)
        log.info("%s received", name)
        self._end(Stop.TERMINATED, f"{name} received", time.monotonic())

    def _end(self, stop: Stop, why: str, now: float) -> None:
        if self.stop is not None:
            return
        self.stop, self.why = stop, why
        log.warning("the task has to end within %g s: %s", self._settings.grace_seconds, why)
        self._timing.stop(now)
        self._tell()

    def _force(self, how: str, code: int | None = None) -> None:
        reason = stopped(self.stop or Stop.TERMINATED, self.why + how)
        log.critical("%s", reason.text)
        exits.record(self._settings.shared_dir, reason)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(reason.code if code is None else code)


def _ignored(number: int, frame: FrameType | None) -> None:
    """The supervisor has it already."""
