"""The companion of a Triton worker: starts tritonserver, loads the models, starts it again when it ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp

from nvcf_worker.function.request import Request
from nvcf_worker.function.response import Outcome, Reply
from nvcf_worker.process.companions import Admission, beside
from nvcf_worker.run.batching.settings import SuggestsConcurrency
from nvcf_worker.run.sidecar.health import Change, HealthCheck
from nvcf_worker.run.sidecar.restarting import RestartingServer
from nvcf_worker.run.sidecar.settings import SidecarSettings
from nvcf_worker.run.tritonserver.access import refusal
from nvcf_worker.run.tritonserver.models import Models
from nvcf_worker.run.tritonserver.output import parse
from nvcf_worker.run.tritonserver.settings import TritonSettings
from nvcf_worker.run.tritonserver.slots import MOST
from nvcf_worker.run.tritonserver.statistics import Statistics
from nvcf_worker.run.tritonserver.traces import TraceReceiver, wanted, without_context_if_unrecorded

HEALTH = "/v2/health/live"
HEALTH_SECONDS = 5.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton's Python backend puts its tensors


class TritonServer(RestartingServer, SuggestsConcurrency):
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
            ),
            parse,
            "nvcf_worker.tritonserver",
        )
        self._triton = settings
        self._models = Models(settings.url, settings.models, ready_timeout)
        self._statistics = Statistics(settings.url)
        self._allow_model_control = allow_model_control
        self._traces: TraceReceiver | None = None
        self.register()

    async def handle(self, request: Request) -> Outcome:
        """Pass one request on, or refuse it (403) in the form in which Triton's clients read errors."""
        reason = refusal(request.method, request.target, model_control=self._allow_model_control)
        if reason is not None:
            return Reply(403, [("content-type", "application/json")], json.dumps({"error": reason}).encode())
        self._statistics.request_came()
        if self._traces is not None:
            without_context_if_unrecorded(request)
        return await self.upstream.handle(request)

    async def watch(self, admission: Admission) -> None:
        """Check the server and read its statistics until cancelled, and start it again when it ends.

        Raises NotReady, or ServerEnded when it ends again and again.
        """
        await beside(super().watch(admission), [self._statistics.follow()])

    async def stop(self) -> None:
        """Unload what was loaded into a server of somebody else; end the worker's own."""
        if self._process is None:
            await self._models.unload()
        await super().stop()
        if self._traces is not None:
            # It has sent its last spans at its end.
            await self._traces.close()

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._models.loaded.clear()
        if self._traces is None and wanted(self._settings.command):
            self._traces = TraceReceiver()
            await self._traces.start()
        return await super()._spawn()

    def _command_line(self) -> list[str]:
        more = [] if self._traces is None else self._traces.arguments()
        return [*super()._command_line(), *more]

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

    async def _left_behind(self) -> None:
        """End processes of models that the server has left, and remove its shared memory."""
        await super()._left_behind()
        if self._process is not None and self._triton.shm_prefix is not None:
            _remove_shared_memory(self._triton.shm_prefix)


def _remove_shared_memory(prefix: str) -> None:
    for file in _SHARED_MEMORY.glob(f"{prefix}*"):
        file.unlink(missing_ok=True)
