"""The companion of a sidecar's worker: starts the user's server, waits for it, monitors it, ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Coroutine
from typing import Any

from nvcf_broker.process import describe_exit, stop_process, wait_exit
from nvcf_worker.errors import NotReady, ServerEnded
from nvcf_worker.process import children
from nvcf_worker.process.companions import Admission
from nvcf_worker.run.sidecar.health import Change, Readiness, probe
from nvcf_worker.run.sidecar.settings import SidecarSettings
from nvcf_worker.run.sidecar.upstream import Upstream
from nvcf_worker.telemetry.setup import current

log = logging.getLogger("nvcf_worker")

END_GRACE = 10.0


class Server:
    """A server on a port, and its process if the worker starts it."""

    def __init__(self, settings: SidecarSettings) -> None:
        self._settings = settings.with_free_port()
        self.upstream = Upstream(self._settings.host, self._settings.port, self._on_unreachable)
        self._process: asyncio.subprocess.Process | None = None
        self._check_now = asyncio.Event()
        self._admission: Admission | None = None
        self._readiness = self._no_checks_yet()

    @property
    def port(self) -> int:
        """The port on which the server listens."""
        return self._settings.port

    async def start(self) -> None:
        """Start the command, if there is one, and wait until the server is healthy.

        Raises ConfigurationError, ServerEnded, or NotReady after the ready time-out.
        """
        self._readiness = self._no_checks_yet()
        if self._settings.command:
            self._process = await self._spawn()
            log.info("started %s (process %d)", self._settings.command[0], self._process.pid)
        await self._while_alive(self._until_ready())

    async def watch(self, admission: Admission) -> None:
        """Check the server until cancelled; pause the worker while it is unhealthy.

        Raises ServerEnded or NotReady.
        """
        self._admission = admission
        await self._while_alive(self._keep_checking(admission))

    async def stop(self) -> None:
        """Close the connections, and end the process if the worker has started it."""
        await self.upstream.close()
        if self._process is not None:
            await stop_process(self._process, END_GRACE)

    def _no_checks_yet(self) -> Readiness:
        return Readiness(self._settings.ready_timeout, self._settings.interval, time.monotonic())

    async def _spawn(self) -> asyncio.subprocess.Process:
        return await children.spawn(self._settings.command_line(), self._environment())

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **current().environment(), "PORT": str(self.port)}

    async def _ended(self, code: int) -> ServerEnded:
        return ServerEnded(f"{self._settings.command[0]} ended by itself: {describe_exit(code)}")

    async def _prepare(self) -> str | None:
        """Prepare a server that has become healthy. Return None, or the reason why that has to come again."""
        return None

    async def _while_alive(self, work: Coroutine[Any, Any, None]) -> None:
        if self._process is None:
            await work
            return
        working = asyncio.ensure_future(work)
        ending = asyncio.ensure_future(wait_exit(self._process))
        try:
            await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                raise await self._ended(ending.result())
            working.result()
        finally:
            working.cancel()
            ending.cancel()
            await asyncio.gather(working, ending, return_exceptions=True)

    async def _check(self) -> tuple[Change, str | None]:
        self._check_now.clear()
        problem = await probe(self._settings.check)
        if problem is None and not self._readiness.ready:
            problem = await self._prepare()
        current().health_checked(problem is None)
        if self._check_now.is_set():
            # A connection broke meanwhile: this result may be older than that.
            return Change.NOTHING, problem
        return self._readiness.checked(problem is None, time.monotonic()), problem

    async def _until_ready(self) -> None:
        while True:
            change, problem = await self._check()
            if change is Change.READY:
                log.info("the function's server on port %d is ready", self.port)
                return
            if change is Change.GIVEN_UP:
                raise self._given_up(problem)
            await asyncio.sleep(self._readiness.pause(time.monotonic()))

    async def _keep_checking(self, admission: Admission) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._readiness.pause(time.monotonic())):
                    await self._check_now.wait()
            change, problem = await self._check()
            match change:
                case Change.LOST:
                    log.error(
                        "the function's server is unhealthy (%s); no requests are taken until it is healthy",
                        problem,
                    )
                    admission.pause()
                case Change.READY:
                    log.info("the function's server is healthy again")
                    admission.resume()
                case Change.GIVEN_UP:
                    raise self._given_up(problem)
                case Change.NOTHING:
                    pass

    def _given_up(self, problem: str | None) -> NotReady:
        check = self._settings.check
        where = f"{check.protocol} port {check.port}{check.endpoint if check.protocol == 'http' else ''}"
        waited = f"{self._settings.ready_timeout:g} s"
        return NotReady(f"the function's server was not ready for {waited} ({where}): {problem}")

    def _on_unreachable(self) -> None:
        """Take no further requests, and check now: the server may be about to start again."""
        self._check_now.set()
        self._lost("the function's server cannot be reached")

    def _lost(self, reason: str) -> None:
        """Take no further requests until the server has been checked and prepared again."""
        if self._admission is not None and self._readiness.lost(time.monotonic()):
            log.error("%s; no requests are taken until it is healthy", reason)
            self._admission.pause()
