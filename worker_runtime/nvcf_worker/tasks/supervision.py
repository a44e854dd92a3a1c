"""Supervise a task's main function from a second thread."""

from __future__ import annotations

import dataclasses
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nvcf_worker.process.companions import NOTICE_INTERVAL
from nvcf_worker.process.leaving import leave_now
from nvcf_worker.tasks.context import ProgressFile
from nvcf_worker.tasks.lifetime import Due, Stop, Timing, stopped
from nvcf_worker.tasks.settings import TaskSettings

log = logging.getLogger("nvcf_worker")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Supervisor:
    """Handles heartbeats, the maximum run time, the grace period, signals and termination notices.

    Signals reach it through a wake-up descriptor, so they work even while main is in a library that does not
    return to Python. Main stays in the main thread, where libraries expect it. `on_stop` is called once, on
    the supervisor's thread, when the task has to end.
    """

    def __init__(
        self, settings: TaskSettings, progress: ProgressFile, notice: Path | None, on_stop: Callable[[], None]
    ) -> None:
        self.stop: Stop | None = None
        self.why = ""
        self._settings = settings
        self._progress = progress
        self._notice = notice
        self._on_stop = on_stop
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
        """Start supervising. Signals are handled only if this is called on the main thread."""
        self._writer.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            for number in SIGNALS:
                # The supervisor's thread reads the signal from the descriptor.
                signal.signal(number, lambda *_: None)
        self._thread.start()

    def finish(self) -> None:
        """Stop supervising and restore the default signal handlers."""
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
        self._progress.heartbeat()
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
                if number in SIGNALS:
                    self._on_signal(signal.Signals(number))

    def _act(self, due: Due, now: float) -> None:
        match due:
            case Due.HEARTBEAT:
                self._progress.heartbeat()
            case Due.STOP:
                limit = self._settings.max_seconds
                self._end(Stop.MAX_RUNTIME, f"the maximum run time of {limit:g} s is over", now)
            case Due.KILL:
                self._kill("; it did not end within its grace period")

    def _on_signal(self, number: signal.Signals) -> None:
        if number is not signal.SIGUSR1:
            self._signals += 1
        if self._signals > 1:
            log.critical("second signal; exiting now")
            self._kill("; a second signal ended it at once", 128 + number)
        log.info("%s received", number.name)
        self._end(Stop.TERMINATED, f"{number.name} received", time.monotonic())

    def _end(self, stop: Stop, why: str, now: float) -> None:
        if self.stop is not None:
            return
        self.stop, self.why = stop, why
        log.warning("the task has to end within %g s: %s", self._settings.grace_seconds, why)
        self._timing.stop(now)
        self._on_stop()

    def _kill(self, how: str, code: int | None = None) -> None:
        reason = stopped(self.stop or Stop.TERMINATED, self.why + how)
        log.critical("%s", reason.text)
        if code is not None:
            reason = dataclasses.replace(reason, code=code)
        leave_now(self._settings.shared_dir, reason)
