"""`nvcf-worker task-companion`: the worker of a task that runs in a container of its own, in the same pod.

It shares a folder with the task and nothing else. It sends heartbeats, reports what the progress file says,
and exits when the task has to end; its agent then ends the pod. The agent sees how the task's container
ended, so that is not for the companion to say.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvcf_proto import settings as defaults
from nvcf_proto.environment import (
    HEALTH_PORT,
    NVCT_FQDN_GRPC,
    NVCT_LEASE_DURATION,
    NVCT_MAX_RUN_TIME_DURATION,
)
from nvcf_proto.pb import nvct_pb2
from nvcf_worker.errors import ConfigurationError, ControlError
from nvcf_worker.process import exit_reason as exits
from nvcf_worker.process.exit_reason import ExitReason
from nvcf_worker.process.health import health_server
from nvcf_worker.serving import set_up_logging
from nvcf_worker.tasks.command import (
    LAST_WORDS_SECONDS,
    RETRY,
    UNREADABLE_LOOKS,
    Ending,
    TaskWorker,
    duration_in,
)
from nvcf_worker.tasks.lifetime import FAILED, MAX_RUNTIME_EXCEEDED, TERMINATED
from nvcf_worker.tasks.platform import TaskPlatform
from nvcf_worker.tasks.settings import PROGRESS_FILE, read_settings

log = logging.getLogger("nvcf_worker")


def main(arguments: list[str]) -> None:
    """Accompany a task until told to exit; exit the process with the reason's code."""
    argparse.ArgumentParser(
        prog="nvcf-worker task-companion",
        description="Report the progress of a task that runs in another container of the same pod.",
    ).parse_args(arguments)
    set_up_logging(None)
    settings = read_settings(os.environ)
    platform = TaskPlatform.of(os.environ)
    if platform is None:
        raise ConfigurationError(f"{NVCT_FQDN_GRPC} is missing: a companion reports to a platform")
    if settings.progress_file is None:
        raise ConfigurationError(f"{PROGRESS_FILE} is missing, which the task and its companion share")
    limit = duration_in(os.environ, NVCT_MAX_RUN_TIME_DURATION, settings.max_seconds)
    lease = duration_in(os.environ, NVCT_LEASE_DURATION, None)
    port = os.environ.get(HEALTH_PORT, "").strip() or str(defaults.HEALTH_PORT)
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigurationError(f"{HEALTH_PORT} is {port!r}; expected a port, or 0 for no health server")
    companion = TaskCompanion(Path(), settings, platform, limit, lease, health_port=int(port))
    reason = asyncio.run(companion.run())
    exits.record(settings.shared_dir, reason)
    log.log(logging.CRITICAL if reason.code == FAILED else logging.INFO, "%s", reason.text)
    raise SystemExit(reason.code)


@dataclass
class TaskCompanion(TaskWorker):
    """The worker of a task that it does not start. Once it is healthy, no report is lost."""

    health_port: int = 0
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _forbidden: int = 0

    async def run(self) -> ExitReason:
        """Accompany the task, and return why that ended. It is never complete: the agent sees that."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopped.set)
        async with (
            health_server(self.health_port, lambda: True, drained=asyncio.Event()),
            asyncio.TaskGroup() as group,
        ):
            working = [group.create_task(each) for each in self._work()]
            over = [group.create_task(each.wait()) for each in (self._stopped, self._ended)]
            await asyncio.wait(over, timeout=self.limit, return_when=asyncio.FIRST_COMPLETED)
            for each in (*working, *over):
                each.cancel()
        # What the task wrote last counts.
        await self._look()
        await self._flush()
        if self._ending is None and not self._stopped.is_set():
            text = f"the maximum run time of {self.limit:g} s is over"
            reason = ExitReason(MAX_RUNTIME_EXCEEDED, "max-runtime-exceeded", text)
            self._end(Ending(nvct_pb2.EXCEEDED_MAX_RUNTIME_DURATION, reason))
        # The task may have failed, but its results count all the same: only their own failure is reported.
        pod_ends = Ending(nvct_pb2.COMPLETED, ExitReason(TERMINATED, "terminated", "the pod ends"))
        ending = self._ending or pod_ends
        # Without a lease another run may upload already.
        if self._uploads is not None and self._grace is None:
            ending = await self._upload(self._uploads, ending)
        return ending.reason if ending is pod_ends else await self._report_end(ending)

    def _work(self) -> Iterator[Coroutine[Any, Any, None]]:
        yield self._greet()
        yield self._beat()
        yield self._keep_looking()
        if self._uploads is not None:
            yield self._uploads.run()

    async def _flush(self) -> None:
        """Send the reports that are left; give up after a while."""
        deadline, attempt = time.monotonic() + LAST_WORDS_SECONDS, 0
        while self._reports and self._grace is None and time.monotonic() < deadline:
            await asyncio.sleep(RETRY.delay(attempt, 0.0))
            await self._send_reports()
            attempt += 1

    async def _greet(self) -> None:
        """Connect. The task runs already, so silence of the platform does not end it."""
        attempt = 0
        while self.platform is not None:
            try:
                await self.platform.connect()
                return
            except ControlError as error:
                if error.permanent:
                    reason = ExitReason(FAILED, "not-connected", f"the platform refuses this task: {error}")
                    self._end(Ending(None, reason))
                    return
                log.warning("%s; trying again", error)
            await asyncio.sleep(RETRY.delay(attempt, 0.0))
            attempt += 1

    async def _look(self) -> None:
        path = self.settings.progress_file
        readable = path is None or not path.exists() or os.access(path, os.R_OK)
        self._forbidden = 0 if readable else self._forbidden + 1
        if self._forbidden == UNREADABLE_LOOKS:
            self._broken("its worker must not read it; make it readable for all users (chmod 644)")
        await super()._look()
