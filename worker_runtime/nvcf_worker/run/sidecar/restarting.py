"""A server that is started again when it ends, and whose lines are records of the worker's log."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from nvcf_broker.process import RestartPolicy, describe_exit, signal_group
from nvcf_worker.errors import ServerEnded
from nvcf_worker.process import children
from nvcf_worker.process.companions import Admission
from nvcf_worker.run.sidecar.output import LONGEST_LINE, LastErrors, Parse, log_lines
from nvcf_worker.run.sidecar.server import Server
from nvcf_worker.run.sidecar.settings import SidecarSettings

log = logging.getLogger("nvcf_worker")

MOST_RESTARTS = 6
"""Restarts in a row after which the next end is the instance's, too, so that it is replaced."""
RESTARTS = RestartPolicy(initial=0.5, factor=2.0, maximum=30.0, stable_after=60.0)
_LAST_LINES_SECONDS = 1.0


class RestartingServer(Server):
    """A server as a child of the worker, or one that runs already.

    parse: reads the lines that it writes. output: the log that gets them.
    """

    def __init__(self, settings: SidecarSettings, parse: Parse, output: str) -> None:
        super().__init__(settings)
        self._parse = parse
        self._output_log = logging.getLogger(output)
        self._last = LastErrors()
        self._output: asyncio.Task[None] | None = None

    async def watch(self, admission: Admission) -> None:
        """Check the server until cancelled, and start it again when it ends.

        Raises NotReady, or ServerEnded when it ends again and again.
        """
        failures, ready = 0, time.monotonic()
        while True:
            try:
                await super().watch(admission)
            except ServerEnded as error:
                ended = error
            admission.pause()
            # The time that it took to become ready is no sign of health.
            served = time.monotonic() - ready
            while True:
                failures = RESTARTS.failures_after(failures, served)
                if failures > MOST_RESTARTS:
                    raise ended
                delay = RESTARTS.delay(failures)
                # Its last lines are in the log already.
                log.error("%s; it is started again in %g s", str(ended).partition("\n")[0], delay)
                await asyncio.sleep(delay)
                try:
                    await self.start()
                    break
                except ServerEnded as error:
                    ended, served = error, 0.0
            ready = time.monotonic()
            admission.resume()

    async def stop(self) -> None:
        """Close the connections, and end the process and its children if the worker has started it."""
        await super().stop()
        await self._left_behind()

    async def _spawn(self) -> asyncio.subprocess.Process:
        await self._left_behind()
        self._last = LastErrors()
        process = await children.spawn(
            self._command_line(), self._environment(), piped=True, longest_line=LONGEST_LINE
        )
        if process.stdout is not None:
            lines = log_lines(process.stdout, self._last, self._parse, self._output_log)
            self._output = asyncio.create_task(lines)
        return process

    def _command_line(self) -> list[str]:
        """Return the command of the next start."""
        return list(self._settings.command_line())

    async def _ended(self, code: int) -> ServerEnded:
        if self._output is not None:
            # Its last lines are still in the pipe, which a child of it may hold open.
            await asyncio.wait({self._output}, timeout=_LAST_LINES_SECONDS)
        words = f"\n{self._last.text}" if self._last.text else ""
        return ServerEnded(f"{self._settings.command[0]} ended by itself: {describe_exit(code)}{words}")

    async def _left_behind(self) -> None:
        """End processes that the server has left."""
        if self._process is None:
            return
        signal_group(self._process.pid, signal.SIGKILL)
        if self._output is not None:
            self._output.cancel()
            await asyncio.gather(self._output, return_exceptions=True)
            self._output = None
