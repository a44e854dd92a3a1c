"""Start and shutdown of an ASGI application by the lifespan protocol (ASGI Lifespan 2.0)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from nvcf_worker.errors import NotReady
from nvcf_worker.process.loops import from_outside

log = logging.getLogger("nvcf_worker")

Application = Callable[..., Awaitable[Any]]

LIFESPAN_VERSION = {"version": "3.0", "spec_version": "2.0"}


class Lifespan:
    """The lifespan of one application. `state` is passed to its requests; None if it has no lifespan."""

    def __init__(self, application: Application) -> None:
        self.state: dict[str, Any] | None = None
        self._application = application
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._started: asyncio.Future[None] | None = None
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when the application has started. Raises NotReady if it fails to."""
        self._started = asyncio.get_running_loop().create_future()
        self.state = {}
        self._task = asyncio.create_task(self._run(self._started))
        await self._inbox.put({"type": "lifespan.startup"})
        await asyncio.shield(self._started)

    async def stop(self, patience: float) -> None:
        """Ask the application to shut down, and wait for it, at most `patience` seconds."""
        if self._task is None:
            return
        if not self._task.done():
            await self._inbox.put({"type": "lifespan.shutdown"})
            try:
                async with asyncio.timeout(patience):
                    await self._stopped.wait()
            except TimeoutError:
                log.warning("the application did not shut down within %g s", patience)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, started: asyncio.Future[None]) -> None:
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            asked = True
            return await self._inbox.get()

        scope = {"type": "lifespan", "asgi": LIFESPAN_VERSION, "state": self.state}
        try:
            await self._application(scope, receive, self._send)
        except BaseException as error:
            if from_outside(error):
                raise
            # By the specification, an application without a lifespan raises before it asks for its first
            # message. An error after that means that the start has failed.
            if asked and not started.done():
                log.exception("the application's start failed")
                self._settle(NotReady(f"the application did not start: {type(error).__name__}: {error}"))
            elif not started.done():
                log.info("the application has no lifespan (%s: %s)", type(error).__name__, error)
                self.state = None
            else:
                log.exception("the application's lifespan failed")
        finally:
            if not started.done():
                started.set_result(None)
            self._stopped.set()

    async def _send(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "lifespan.startup.complete":
                self._settle(None)
            case "lifespan.startup.failed":
                self._settle(
                    NotReady(f"the application did not start: {message.get('message') or 'no reason'}")
                )
            case "lifespan.shutdown.complete":
                self._stopped.set()
            case "lifespan.shutdown.failed":
                log.error("the application's shutdown failed: %s", message.get("message") or "no reason")
                self._stopped.set()

    def _settle(self, error: NotReady | None) -> None:
        if self._started is None or self._started.done():
            return
        if error is None:
            self._started.set_result(None)
        else:
            self._started.set_exception(error)
