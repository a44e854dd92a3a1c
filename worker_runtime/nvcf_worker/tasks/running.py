"""`task`: run a main function to its end as the platform expects it of a task."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvcf_worker.errors import ConfigurationError, HandlerError, WorkerError
from nvcf_worker.process import exit_reason as exits
from nvcf_worker.process.companions import TERMINATION_NOTICE_FILE
from nvcf_worker.process.exit_reason import ExitReason
from nvcf_worker.process.imported import for_definitions_only
from nvcf_worker.process.leaving import leave_soon
from nvcf_worker.process.loops import run_to_end
from nvcf_worker.serving import mark_served, set_up_logging
from nvcf_worker.tasks.context import ProgressFile, Task
from nvcf_worker.tasks.lifetime import COMPLETED, outcome
from nvcf_worker.tasks.settings import TaskSettings, read_settings
from nvcf_worker.tasks.supervision import Supervisor

log = logging.getLogger("nvcf_worker")


def task(
    main: Callable[[Task], Any],
    *,
    max_seconds: float | None = None,
    grace_seconds: float | None = None,
    log_level: str | None = None,
) -> None:
    """Run `main(task)` to its end; exit the process unless the task is complete.

    main: a function or coroutine function with one argument, the `Task`. It runs in the main thread.
    max_seconds: maximum run time; default NVCT_MAX_RUNTIME_DURATION, else none.
    grace_seconds: how long main may go on after it was asked to end, default 25 s. When it is asked to end,
        coroutines are cancelled and plain functions see `task.cancelled`. After the grace period the process
        exits.
    log_level: default NVCF_LOG_LEVEL, else "info".

    While main runs, the progress file (NVCT_PROGRESS_FILE_PATH) is updated every 30 s. Afterwards the folder
    NVCT_RESULTS_DIR is sent as one zip file to NVCT_RESULTS_UPLOAD_URL if that is set. The results of a task
    that failed or was stopped are sent, too.

    Returns when the task is complete. Otherwise the process exits with code 1 (main failed, or the results
    could not be sent), 2 (invalid settings), 124 (maximum run time), 143 (terminated) or with the code of
    `sys.exit(n)` in main. The reason is written to SHARED_CONFIG_DIR. Raises HandlerError if main cannot be
    called with one argument.
    """
    _check(main)
    if for_definitions_only():
        return
    mark_served()
    set_up_logging(log_level)
    try:
        settings = read_settings(os.environ, max_seconds=max_seconds, grace_seconds=grace_seconds)
    except ConfigurationError as error:
        log.critical("%s", error)
        raise SystemExit(error.exit_code) from None
    reason = _Run(main, settings).run()
    exits.record(settings.shared_dir, reason)
    leave_soon(reason.code)
    if reason.code != COMPLETED:
        log.critical("%s", reason.text)
        raise SystemExit(reason.code)
    log.info("%s", reason.text)


def _check(main: Callable[[Task], Any]) -> None:
    if not callable(main):
        raise HandlerError(f"task() takes a function; got {type(main).__name__}")
    try:
        inspect.signature(main).bind(None)
    except TypeError as error:
        raise HandlerError(f"a task's main function takes one argument, the task: {error}") from error
    except ValueError:  # some built-in callables have no signature to check
        pass


class _Run:
    """One run of a main function."""

    def __init__(self, main: Callable[[Task], Any], settings: TaskSettings) -> None:
        self._main = main
        self._settings = settings
        self._progress = ProgressFile(
            settings.progress_file, settings.id, settings.name, repeats=settings.names_repeat
        )
        self._task = Task(settings, self._progress, time.time())
        self._cancel_main: Callable[[], object] | None = None
        self._lock = threading.Lock()
        notice = os.environ.get(TERMINATION_NOTICE_FILE)
        self._supervisor = Supervisor(
            settings, self._progress, Path(notice) if notice else None, self._on_stop
        )

    def run(self) -> ExitReason:
        self._supervisor.start()
        try:
            error = self._run_main()
            reason = outcome(self._supervisor.stop, self._supervisor.why, error)
            if reason.code == COMPLETED:
                self._progress.complete()
            else:
                self._progress.heartbeat()
            return self._send_results(reason)
        finally:
            self._supervisor.finish()

    def _run_main(self) -> BaseException | None:
        try:
            result = self._main(self._task)
            if inspect.iscoroutine(result):
                run_to_end(self._run_coroutine(result), plain=True)
        # Whatever main raises is how the task ended: its results are sent, and the reason is recorded.
        except BaseException as error:
            if self._supervisor.stop is None and not isinstance(error, SystemExit):
                log.exception("the task failed")
            return error
        finally:
            sys.stdout.flush()
        return None

    async def _run_coroutine(self, coroutine: Any) -> None:
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(coroutine)
        with self._lock:
            self._cancel_main = functools.partial(loop.call_soon_threadsafe, running.cancel)
            if self._task.cancelled:
                running.cancel()
        try:
            await running
        finally:
            with self._lock:
                self._cancel_main = None

    def _on_stop(self) -> None:
        # Called on the supervisor's thread.
        self._task.cancelled.set()
        with self._lock:
            if self._cancel_main is not None:
                self._cancel_main()

    def _send_results(self, reason: ExitReason) -> ExitReason:
        folder, url = self._settings.results_dir, self._settings.upload_url
        if folder is None or url is None:
            return reason
        from nvcf_worker.tasks.upload import upload

        try:
            run_to_end(upload(folder, url), plain=True)
        except WorkerError as error:
            log.error("%s", error)
            # The end of the task itself is reported first, unless it was complete.
            if reason.code == COMPLETED:
                return ExitReason(error.exit_code, error.category, str(error))
        return reason
