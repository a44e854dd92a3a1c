"""Run an ASGI application as the function of a worker, in the worker's process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, NoReturn

from nvcf_worker.errors import HandlerError
from nvcf_worker.function.request import Request
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.process.companions import Admission
from nvcf_worker.process.loops import contained, from_outside
from nvcf_worker.run.asgi.cycle import Cycle, http_scope
from nvcf_worker.run.asgi.lifespan import Application, Lifespan
from nvcf_worker.run.sidecar.relay import has_no_body, response_headers

log = logging.getLogger("nvcf_worker")

LEAVE_PATIENCE = 0.5
"""Seconds in which an application may end by itself after `http.disconnect`; then it is cancelled."""

SHUTDOWN_PATIENCE = 10.0
FIRST_CHUNK_WAIT = 0.02


class AsgiHost:
    """One application in this process, as the handler (`handle`) and the companion of a worker.

    In addition to the usual keys, a scope has `state` (of the lifespan) and `extensions["nvcf"]["request"]`,
    the worker's Request.
    """

    def __init__(self, application: Any, *, root_path: str = "") -> None:
        if not callable(application):
            raise HandlerError(f"an ASGI application is callable; got {type(application).__name__}")
        self._application: Application = application
        self._root_path = root_path.rstrip("/")
        self._lifespan = Lifespan(application)
        # Calls that still run after their response was complete, e.g. for Starlette's background tasks.
        self._background: set[asyncio.Task[None]] = set()

    # --- companion

    async def start(self) -> None:
        """Start the application's lifespan. Raises NotReady if that fails."""
        await self._lifespan.start()

    async def watch(self, admission: Admission) -> None:
        """Do nothing until cancelled: the application cannot be lost, because it runs in this process."""
        await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        """Wait for background work, then end the lifespan."""
        if self._background:
            _, late = await asyncio.wait(self._background, timeout=SHUTDOWN_PATIENCE)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._lifespan.stop(SHUTDOWN_PATIENCE)

    # --- requests

    async def handle(self, request: Request) -> Outcome:
        """Serve one request. Raises what the application raises before its first chunk."""
        cycle = Cycle(request)
        scope = http_scope(
            request.method,
            request.target,
            request.headers.pairs(),
            root_path=self._root_path,
            state=self._lifespan.state,
            extensions={"nvcf": {"request": request}},
        )
        call = asyncio.create_task(self._call(scope, cycle))
        call.add_done_callback(lambda _: cycle.ended())
        rest = _Rest(cycle, call, self._background)
        try:
            return await self._outcome(cycle, rest, request.method)
        except BaseException:
            await rest.aclose()
            raise

    async def _call(self, scope: dict[str, Any], cycle: Cycle) -> None:
        try:
            await self._application(scope, cycle.receive, cycle.send)
        except Exception:
            raise
        except BaseException as error:
            if from_outside(error):
                raise
            # In a task of its own, e.g. SystemExit would stop the event loop.
            raise contained(error) from error

    async def _outcome(self, cycle: Cycle, rest: _Rest, method: str) -> Outcome:
        await cycle.started.wait()
        if not cycle.status:
            rest.raise_failure()
        if not cycle.has_chunk:
            await asyncio.sleep(0)
        if not cycle.has_chunk:
            # The head came without a body. Wait a moment for the first chunk, then send the head alone.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_CHUNK_WAIT):
                    await cycle.came.wait()
        if not cycle.has_chunk and rest.call.done():
            rest.raise_failure()
        first = cycle.take() if cycle.has_chunk else b""
        ends_here = has_no_body(cycle.status, method)
        complete = cycle.complete or ends_here
        headers = response_headers(cycle.status, method, cycle.headers, complete=complete)
        if not complete:
            length = next((value for name, value in headers if name.lower() == "content-length"), "")
            return StreamReply(cycle.status, headers, first, rest, int(length) if length.isdigit() else None)
        if cycle.complete:
            rest.release()
        else:
            await rest.aclose()
        return Reply(cycle.status, headers, b"" if ends_here else first)


class _Rest:
    """The rest of a streamed response, and the application's call that makes it."""

    def __init__(self, cycle: Cycle, call: asyncio.Task[None], background: set[asyncio.Task[None]]) -> None:
        self._cycle = cycle
        self.call = call
        self._background = background

    def raise_failure(self) -> NoReturn:
        """Raise the error of a call that has ended without a complete response."""
        self.call.result()
        raise RuntimeError("the application returned without completing its response")

    async def __anext__(self) -> bytes:
        if not self._cycle.has_chunk:
            if self._cycle.complete:
                raise StopAsyncIteration
            await self._cycle.came.wait()
            if not self._cycle.has_chunk:
                self.raise_failure()
        return self._cycle.take()

    def release(self) -> None:
        """Let the call go on in the background: its response is complete."""
        self._cycle.disconnect()
        if self.call.done():
            _report(self.call)
            return
        self._background.add(self.call)
        self.call.add_done_callback(self._background.discard)
        self.call.add_done_callback(_report)

    async def aclose(self) -> None:
        """Release a complete response; otherwise disconnect the application and wait until it has ended."""
        if self._cycle.complete and not self._cycle.has_chunk:
            self.release()
            return
        self._cycle.disconnect()
        if not self.call.done():
            await asyncio.wait((self.call,), timeout=LEAVE_PATIENCE)
        if not self.call.done():
            self.call.cancel()
            await asyncio.wait((self.call,))
        if not self.call.cancelled():
            # Retrieved and ignored: the failure was reported, or is a result of the disconnect.
            self.call.exception()


def _report(call: asyncio.Task[None]) -> None:
    if not call.cancelled() and (error := call.exception()) is not None:
        log.error("the application failed after its response was complete", exc_info=error)
