"""`nvcf-worker task FILE`: the worker of a task. It runs the file as a process and reports to the platform.

It is to a process what NVIDIA's `utils` is to a container: it sends heartbeats, reads the progress file, ends
the process at the maximum run time or when the platform says so, and tells how it ended. The process knows
nothing of the platform but its folders; it may be any Python file, with `task(main)` in it or without.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nvcf_broker.errors import ProcessError
from nvcf_broker.process import describe_exit, spawn, stop_process, wait_exit
from nvcf_proto.environment import (
    NVCT_FQDN_GRPC,
    NVCT_LEASE_DURATION,
    NVCT_MAX_RUN_TIME_DURATION,
    NVCT_RESULT_HANDLING_STRATEGY,
    NVCT_WORKER_TOKEN,
)
from nvcf_proto.leases import LEASE_GRACE_SECONDS
from nvcf_proto.pb import nvct_pb2
from nvcf_worker.errors import ConfigurationError, ControlError, RunOver
from nvcf_worker.process import exit_reason as exits
from nvcf_worker.process.durations import Backoff, parse_duration
from nvcf_worker.process.exit_reason import ExitReason
from nvcf_worker.serving import set_up_logging
from nvcf_worker.tasks.lifetime import COMPLETED, FAILED, MAX_RUNTIME_EXCEEDED, TERMINATED
from nvcf_worker.tasks.platform import OVER, TaskPlatform
from nvcf_worker.tasks.progress_rules import BrokenRule, ProgressRules, Report, Unreadable
from nvcf_worker.tasks.result_uploads import ResultUploads
from nvcf_worker.tasks.s3_store import StoreError
from nvcf_worker.tasks.settings import TaskSettings, read_settings

log = logging.getLogger("nvcf_worker")

HEARTBEAT_SECONDS = 60.0
LOOK_SECONDS = 0.5
"""How often the progress file is looked at."""
UNREADABLE_LOOKS = 6
"""So many looks in a row at a file without JSON are no write that goes on."""
CONNECT_SECONDS = 120.0
LAST_WORDS_SECONDS = 60.0
RETRY = Backoff(first=0.5, limit=5.0)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# What the task's own process does not need.
_OF_THE_WORKER = (NVCT_WORKER_TOKEN, NVCT_FQDN_GRPC)


@dataclass(frozen=True)
class Ending:
    """Why the task's process was ended, and the outcome: the status to report, exit code, category, text.

    Without a status there is nothing to report: the platform knows.
    """

    status: nvct_pb2.ExecutionStatus.ValueType | None
    reason: ExitReason


def main(arguments: list[str]) -> None:
    """Run a task's file to its end; exit the process with its outcome."""
    parser = argparse.ArgumentParser(
        prog="nvcf-worker task",
        description="Run a Python file to its end as a task: report progress and end to the platform.",
    )
    parser.add_argument("file", metavar="FILE", help="the task's Python file")
    file = Path(parser.parse_args(arguments).file).resolve()
    if not file.is_file():
        raise ConfigurationError(f"there is no file {file}")
    set_up_logging(None)
    settings = read_settings(os.environ)
    limit = duration_in(os.environ, NVCT_MAX_RUN_TIME_DURATION, settings.max_seconds)
    lease = duration_in(os.environ, NVCT_LEASE_DURATION, None)
    worker = TaskWorker(file, settings, TaskPlatform.of(os.environ), limit, lease)
    reason = asyncio.run(worker.run())
    exits.record(settings.shared_dir, reason)
    log.log(logging.INFO if reason.code == COMPLETED else logging.CRITICAL, "%s", reason.text)
    raise SystemExit(reason.code)


def duration_in(environ: Mapping[str, str], name: str, default: float | None) -> float | None:
    """Return the seconds of a variable with a duration. Raises ConfigurationError."""
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}") from None


@dataclass
class TaskWorker:
    """The worker of one task. `lease` is for how many seconds it goes on if the platform is silent."""

    file: Path
    settings: TaskSettings
    platform: TaskPlatform | None
    limit: float | None
    lease: float | None = None
    _ending: Ending | None = None
    _ended: asyncio.Event = field(default_factory=asyncio.Event)
    _ended_at: float | None = None
    _reports: list[Report] = field(default_factory=list)
    _unreadable: int = 0
    _grace: float | None = None
    _answered: float = field(default_factory=time.monotonic)
    _seen: bytes = b""

    def __post_init__(self) -> None:
        strategy = os.environ.get(NVCT_RESULT_HANDLING_STRATEGY, "UPLOAD")
        self._rules = ProgressRules(upload=strategy != "NONE")
        self._uploads = ResultUploads.of(os.environ, self.settings, self.platform)

    async def run(self) -> ExitReason:
        """Run the file, and return how it ended."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._terminated, number.name)
        if self.platform is not None:
            try:
                await _repeated(self.platform.connect, CONNECT_SECONDS, self._ended)
            except ControlError as error:
                return ExitReason(FAILED, "not-connected", f"the platform does not take this task: {error}")
        if self._ending is not None:
            return await self._report_end(self._ending)
        started = time.monotonic()
        try:
            process = await spawn([sys.executable, str(self.file)], env=self._environment())
        except ProcessError as error:
            reason = ExitReason(FAILED, "failed", str(error))
            return await self._report_end(Ending(nvct_pb2.ERRORED, reason))
        code = await self._accompany(process, started)
        await self._look()
        ending = self._ending or self._outcome(code)
        # Without a lease another run may upload already.
        if self._uploads is not None and self._grace is None:
            ending = await self._upload(self._uploads, ending)
        return await self._report_end(ending)

    def _environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in _OF_THE_WORKER}

    async def _accompany(self, process: asyncio.subprocess.Process, started: float) -> int:
        """Watch the process until it has ended, and return its exit code."""
        exited = asyncio.ensure_future(wait_exit(process))
        asked = asyncio.ensure_future(self._ended.wait())
        beating = asyncio.ensure_future(self._beat())
        looking = asyncio.ensure_future(self._keep_looking())
        background = {exited, asked, beating, looking}
        if self._uploads is not None:
            background.add(asyncio.ensure_future(self._uploads.run()))
        try:
            left = None if self.limit is None else max(0.0, started + self.limit - time.monotonic())
            await asyncio.wait({exited, asked}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done():
                if self._ending is None:
                    text = f"the maximum run time of {self.limit:g} s is over"
                    reason = ExitReason(MAX_RUNTIME_EXCEEDED, "max-runtime-exceeded", text)
                    self._end(Ending(nvct_pb2.EXCEEDED_MAX_RUNTIME_DURATION, reason))
                grace = self.settings.grace_seconds if self._grace is None else self._grace
                log.warning("the task has to end within %g s", grace)
                await stop_process(process, grace)
            # Nothing that the process started stays.
            return await stop_process(process, 0)
        finally:
            for each in background:
                each.cancel()
            await asyncio.wait(background)

    async def _upload(self, uploads: ResultUploads, ending: Ending) -> Ending:
        """Upload what is left, and return the outcome: a task without its results is not complete.

        A task that failed has its grace period for it, one that was ended what is left of that. Meanwhile its
        worker shows that it lives.
        """
        complete = ending.status == nvct_pb2.COMPLETED
        since = time.monotonic() if self._ended_at is None else self._ended_at
        beating = asyncio.ensure_future(self._beat())
        uploading = asyncio.ensure_future(uploads.finish())
        asked = None if self._ended.is_set() else asyncio.ensure_future(self._ended.wait())
        waiting = {uploading} if asked is None else {uploading, asked}
        try:
            left = max(0.0, since + self.settings.grace_seconds - time.monotonic())
            limit = None if complete else left
            await asyncio.wait(waiting, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not uploading.done():
                log.error("the results are not all uploaded: the task has to end")
                return self._ending or ending
            log.info("uploaded files of results: %d", uploading.result())
        except StoreError as error:
            text = f"the results could not be uploaded: {error}"
            log.error("%s", text)
            if complete:
                return Ending(nvct_pb2.ERRORED, ExitReason(FAILED, error.category, text))
        finally:
            for each in {beating, *waiting}:
                each.cancel()
            await asyncio.wait({beating, *waiting})
        return ending

    def _terminated(self, name: str) -> None:
        text = f"the worker was told to end ({name})"
        self._end(Ending(nvct_pb2.WORKER_TERMINATED, ExitReason(TERMINATED, "terminated", text)))

    def _end(self, ending: Ending) -> None:
        """End the process. The first reason counts."""
        if self._ending is None:
            self._ending, self._ended_at = ending, time.monotonic()
        self._ended.set()

    def _outcome(self, code: int) -> Ending:
        """Return the outcome of a process that ended by itself."""
        if code == 0:
            return Ending(nvct_pb2.COMPLETED, ExitReason(COMPLETED, "completed", "the task is complete"))
        said = self._said(code)
        reason = said or ExitReason(abs(code) or FAILED, "failed", f"the task ended: {describe_exit(code)}")
        if code < 0:
            reason = ExitReason(128 - code, reason.category, reason.text)
        if reason.code == MAX_RUNTIME_EXCEEDED:
            return Ending(nvct_pb2.EXCEEDED_MAX_RUNTIME_DURATION, reason)
        return Ending(nvct_pb2.ERRORED, reason)

    def _said(self, code: int) -> ExitReason | None:
        """Return what the task itself has said about its end."""
        try:
            members = json.loads((self.settings.shared_dir / exits.FILE_NAME).read_bytes())
            found = ExitReason(members["code"], str(members["category"]), str(members["text"])[:1000])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.code == code else None

    # the progress file

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        """Look at the progress file once, and report what is new."""
        path = self.settings.progress_file
        if path is None or self._ending is not None:
            return
        with contextlib.suppress(OSError):
            self._seen = await asyncio.to_thread(path.read_bytes)
        if not self._seen:
            return
        try:
            report = self._rules.read(self._seen, time.time())
            self._unreadable = 0
        except Unreadable as error:
            self._unreadable += 1
            if self._unreadable >= UNREADABLE_LOOKS:
                self._broken(str(error))
            return
        except BrokenRule as error:
            self._broken(str(error))
            return
        if report is not None:
            self._reports.append(report)
            if self._uploads is not None:
                self._uploads.report(report.name)
        await self._send_reports()

    def _broken(self, text: str) -> None:
        reason = ExitReason(FAILED, "invalid-progress", f"the progress file breaks a rule: {text}")
        self._end(Ending(nvct_pb2.ERRORED, reason))

    async def _send_reports(self) -> None:
        """Send what is to be reported; what cannot be sent now is sent later, the newest 100."""
        if self.platform is None:
            self._reports.clear()
        del self._reports[:-100]
        while self._reports and self.platform is not None:
            try:
                self._heed(await self.platform.report(self._reports[0]))
            except ControlError as error:
                log.warning("progress is reported later: %s", error)
                if not error.permanent:
                    return
            self._reports.pop(0)

    # the platform

    async def _beat(self) -> None:
        while self.platform is not None:
            sent = time.monotonic()
            try:
                self._heed(await self.platform.heartbeat(nvct_pb2.RUNNING))
                pause, self._answered = HEARTBEAT_SECONDS, sent
            except RunOver as error:
                self._end(Ending(None, ExitReason(TERMINATED, "terminated", str(error))))
                return
            except ControlError as error:
                log.warning("heartbeat not taken: %s", error)
                pause = RETRY.limit
            if self.lease is not None:
                left = self._answered + self.lease - time.monotonic()
                if left <= 0:
                    self._lease_over(self.lease)
                    return
                pause = min(pause, left)
            await asyncio.sleep(pause)

    def _lease_over(self, lease: float) -> None:
        """End the process soon: the platform may begin another run of the task."""
        self._grace = min(self.settings.grace_seconds, LEASE_GRACE_SECONDS)
        text = f"the platform has not answered for {lease:g} s, and may run the task elsewhere"
        self._end(Ending(None, ExitReason(TERMINATED, "terminated", text)))

    def _heed(self, status: nvct_pb2.ExecutionStatus.ValueType) -> None:
        """End the process if the platform says that the task is over."""
        if status in OVER:
            name = nvct_pb2.ExecutionStatus.Name(status)
            text = f"the platform says that the task is {name}"
            self._end(Ending(None, ExitReason(TERMINATED, "terminated", text)))

    async def _report_end(self, ending: Ending) -> ExitReason:
        """Tell the platform how the task ended. Without an answer, the exit code has to do."""
        platform, status = self.platform, ending.status
        if platform is not None and status is not None:
            error = "" if status == nvct_pb2.COMPLETED else ending.reason.text
            try:
                await self._send_reports()
                await _repeated(lambda: platform.heartbeat(status, error), LAST_WORDS_SECONDS)
            except ControlError as failure:
                log.error("the platform learns the end of the task from the exit code alone: %s", failure)
        return ending.reason


async def _repeated(
    call: Callable[[], Awaitable[object]], seconds: float, given_up: asyncio.Event | None = None
) -> None:
    """Make a call until it is answered. Raises ControlError: refused for good, or not answered in time."""
    deadline, attempt = time.monotonic() + seconds, 0
    while True:
        try:
            await call()
        except ControlError as error:
            pause = RETRY.delay(attempt, 0.0)
            if error.permanent or time.monotonic() + pause > deadline:
                raise
            log.warning("%s; trying again", error)
        else:
            return
        attempt += 1
        if given_up is not None and given_up.is_set():
            return
        await asyncio.sleep(pause)
