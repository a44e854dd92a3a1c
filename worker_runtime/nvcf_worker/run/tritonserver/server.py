"""The companion of a Triton worker: starts tritonserver, loads the models, starts it again when it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import time
from pathlib import Path

import aiohttp

from nvcf_broker.process import RestartPolicy, describe_exit, signal_group
from nvcf_worker.errors import ServerEnded
from nvcf_worker.function.request import Request
from nvcf_worker.function.response import Outcome, Reply
from nvcf_worker.process import children
from nvcf_worker.process.companions import Admission, beside
from nvcf_worker.run.batching.settings import SuggestsConcurrency
from nvcf_worker.run.sidecar.health import Change, HealthCheck
from nvcf_worker.run.sidecar.server import Server
from nvcf_worker.run.sidecar.settings import SidecarSettings
from nvcf_worker.run.tritonserver.access import refusal
from nvcf_worker.run.tritonserver.models import Models
from nvcf_worker.run.tritonserver.output import LONGEST_LINE, LastErrors, log_lines
from nvcf_worker.run.tritonserver.settings import TritonSettings
from nvcf_worker.run.tritonserver.slots import MOST
from nvcf_worker.run.tritonserver.statistics import Statistics

log = logging.getLogger("nvcf_worker")

HEALTH = "/v2/health/live"
HEALTH_SECONDS = 5.0
MOST_RESTARTS = 6
"""Restarts in a row after which the next end is the instance's, too, so that it is replaced."""
RESTARTS = RestartPolicy(initial=0.5, factor=2.0, maximum=30.0, stable_after=60.0)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton's Python backend puts its tensors
_LAST_LINES_SECONDS = 1.0


class TritonServer(Server, SuggestsConcurrency):
    """A Triton server, its models, and its process if the worker starts it."""

    # More than most models need: the statistics limit the worker's slots.
    suggested_concurrency = MOST

    def __init__(self, settings: TritonSettings, ready_timeout: float, *, allow_model_control: bool) -> None:
        check = HealthCheck("http", settings.host, settings.http_port, HEALTH)
        super().__init__(
            SidecarSettings(
                host=settings.host,
                port=settings.http_port,
                check=check,
                interval=HEALTH_SECONDS,
                ready_timeout=ready_timeout,
                command=settings.command,
            )
        )
        self._triton = settings
        self._models = Models(settings.url, settings.models, ready_timeout)
        self._statistics = Statistics(settings.url)
        self._allow_model_control = allow_model_control
        self._last = LastErrors()
        self._output: asyncio.Task[None] | None = None
        self.register()

    async def handle(self, request: Request) -> Outcome:
        """Pass one request on, or refuse it (403) in the form in which Triton's clients read errors."""
        reason = refusal(request.method, request.target, model_control=self._allow_model_control)
        if reason is not None:
            return Reply(403, [("content-type", "application/json")], json.dumps({"error": reason}).encode())
        self._statistics.request_came()
        return await self.upstream.handle(request)

    async def watch(self, admission: Admission) -> None:
        """Check the server and read its statistics until cancelled, and start it again when it ends.

        Raises NotReady, or ServerEnded when it ends again and again.
        """
        await beside(self._keep_running(admission), [self._statistics.follow()])

    async def _keep_running(self, admission: Admission) -> None:
        failures, ready = 0, time.monotonic()
        while True:
            try:
                await super().watch(admission)
            except ServerEnded as error:
                ended = error
            admission.pause()
            # The time that it took to load models is no sign of health.
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
        """Unload what was loaded into a server of somebody else; end the worker's own."""
        if self._process is None:
            await self._models.unload()
        await super().stop()
        await self._left_behind()

    async def _spawn(self) -> asyncio.subprocess.Process:
        await self._left_behind()
        self._last = LastErrors()
        self._models.loaded.clear()
        process = await children.spawn(
            self._settings.command_line(), self._environment(), piped=True, longest_line=LONGEST_LINE
        )
        if process.stdout is not None:
            self._output = asyncio.create_task(log_lines(process.stdout, self._last))
        return process

    async def _check(self) -> tuple[Change, str | None]:
        # A server of somebody else may have been started anew since the last check.
        if self._process is None and self._readiness.ready and not self._allow_model_control:
            missing = await self._models.missing()
            if missing is not None:
                self._lost(f"Triton no longer has model {missing!r}, which is loaded again")
        return await super()._check()

    async def _prepare(self) -> str | None:
        try:
            await self._models.load()
        except aiohttp.ClientError as error:
            return f"it broke off while it loaded models: {error}"
        self._statistics.limit()
        return None

    async def _ended(self, code: int) -> ServerEnded:
        if self._output is not None:
            # Its last lines are still in the pipe, which a model's process may hold open.
            await asyncio.wait({self._output}, timeout=_LAST_LINES_SECONDS)
        words = f"\n{self._last.text}" if self._last.text else ""
        return ServerEnded(f"{self._settings.command[0]} ended by itself: {describe_exit(code)}{words}")

    async def _left_behind(self) -> None:
        """End processes of models that the server has left, and remove its shared memory."""
        if self._process is None:
            return
        signal_group(self._process.pid, signal.SIGKILL)
        if self._output is not None:
            self._output.cancel()
            await asyncio.gather(self._output, return_exceptions=True)
            self._output = None
        if self._triton.shm_prefix is not None:
            _remove_shared_memory(self._triton.shm_prefix)


def _remove_shared_memory(prefix: str) -> None:
    for file in _SHARED_MEMORY.glob(f"{prefix}*"):
        file.unlink(missing_ok=True)
