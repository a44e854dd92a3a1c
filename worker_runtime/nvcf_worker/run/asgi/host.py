"""Running an ASGI application as a worker's function."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, NoReturn

from nvcf_worker.errors import HandlerError
from nvcf_worker.function.request import Request
from nvcf_worker.function.response import Outcome, Reply, StreamReply
from nvcf_worker.process.companions import Admission
from nvcf_worker.run.asgi.exchange import Exchange
from nvcf_worker.run.asgi.lifespan import Application, Lifespan
from nvcf_worker.run.asgi.scope import http_scope
from nvcf_worker.run.sidecar.relay import has_no_body, response_headers

log = logging.getLogger("nvcf_worker")

LEAVE_PATIENCE = 0.5
"""Seconds that an application has to end by itself after `http.disconnect`, before it is cancelled."""

SHUTDOWN_PATIENCE = 10.0
FIRST_CHUNK_WAIT = 0.02


class AsgiHost:
    """One application in this process; a worker's handler (`handle`) and companion.

    Beside the usual keys a scope has `state` (the lifespan's) and `extensions["nvcf"]["request"]`, the
    worker's Request.
    """

    def __init__(self, application: Any, *, root_path: str = "") -> None:
        if not callable(application):
            raise HandlerError(f"an ASGI application is callable; got {type(application).__name__}")
        self._application: Application = application
        self._root_path = root_path.rstrip("/")
        self._lifespan = Lifespan(application)
        # Calls whose answer is complete and that still run, e.g. for Starlette's background tasks.
        self._lasting: set[asyncio.Task[None]] = set()

    # --- companion -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the application's lifespan. Raises NotReady when it fails."""
        await self._lifespan.start()

    async def watch(self, admission: Admission) -> None:
        """Nothing to look after: the application lives in this process."""
        await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        """Let background work finish, then end the lifespan."""
        if self._lasting:
            _, late = await asyncio.wait(self._lasting, timeout=SHUTDOWN_PATIENCE)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._lifespan.stop(SHUTDOWN_PATIENCE)

    # --- requests --------------------------------------------------------------------------------

    async def handle(self, request: Request) -> Outcome:
        """Serve one request. Raises what the application raises before its first chunk."""
        exchange = Exchange(request)
        scope = http_scope(
            request.method,
            request.target,
            request.headers.pairs(),
            root_path=self._root_path,
            state=self._lifespan.state,
            extensions={"nvcf": {"request": request}},
        )
        call = asyncio.create_task(self._call(scope, exchange))
        call.add_done_callback(lambda _: exchange.ended())
        answer = _Answer(exchange, call, self._lasting)
        try:
            return await self._outcome(exchange, answer, request.method)
        except BaseException:
            await answer.aclose()
            raise

    async def _call(self, scope: dict[str, Any], exchange: Exchange) -> None:
        await self._application(scope, exchange.receive, exchange.send)

    async def _outcome(self, exchange: Exchange, answer: _Answer, method: str) -> Outcome:
        await exchange.started()
        if not exchange.status:
            answer.raise_failure()
        if not exchange.has_chunk:
            await asyncio.sleep(0)
        if not exchange.has_chunk:
            # A head without a body yet. Soon there is one, or the head has to go alone.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_CHUNK_WAIT):
                    await exchange.came()
        if not exchange.has_chunk and answer.call_ended:
            answer.raise_failure()
        first = exchange.take() if exchange.has_chunk else b""
        ends_here = has_no_body(exchange.status, method)
        complete = exchange.complete or ends_here
        headers = response_headers(exchange.status, method, exchange.headers, complete=complete)
        if not complete:
            length = next((value for name, value in headers if name.lower() == "content-length"), "")
            return StreamReply(
                exchange.status, headers, first, answer, int(length) if length.isdigit() else None
            )
        if exchange.complete:
            answer.release()
        else:
            await answer.aclose()
        return Reply(exchange.status, headers, b"" if ends_here else first)


class _Answer:
    """The rest of an answer, and the application's call that makes it."""

    def __init__(
        self, exchange: Exchange, call: asyncio.Task[None], lasting: set[asyncio.Task[None]]
    ) -> None:
        self._exchange = exchange
        self._call = call
        self._lasting = lasting

    @property
    def call_ended(self) -> bool:
        """Whether the application's call is over."""
        return self._call.done()

    def raise_failure(self) -> NoReturn:
        """The call is over without a complete answer: raise what it raised."""
        self._call.result()
        raise RuntimeError("the application returned without completing its answer")

    async def __anext__(self) -> bytes:
        if not self._exchange.has_chunk:
            if self._exchange.complete:
                raise StopAsyncIteration
            await self._exchange.came()
            if not self._exchange.has_chunk:
                self.raise_failure()
        return self._exchange.take()

    def release(self) -> None:
        """The answer is complete; what the call still does is its own matter."""
        self._exchange.disconnect()
        if self._call.done():
            _report(self._call)
            return
        self._lasting.add(self._call)
        self._call.add_done_callback(self._lasting.discard)
        self._call.add_done_callback(_report)

    async def aclose(self) -> None:
        """The answer is complete, or nobody wants the rest: wait until the application has ended."""
        if self._exchange.complete and not self._exchange.has_chunk:
            self.release()
            return
        self._exchange.disconnect()
        if not self._call.done():
            await asyncio.wait((self._call,), timeout=LEAVE_PATIENCE)
        if not self._call.done():
            self._call.cancel()
            await asyncio.wait((self._call,))
        if not self._call.cancelled():
            # Its failure has been told already, or comes from the caller's leaving.
            self._call.exception()


def _report(call: asyncio.Task[None]) -> None:
    if not call.cancelled() and (error := call.exception()) is not None:
        log.error("the application failed after its answer was complete", exc_info=error)
