"""The child process of an isolated handler: runs the worker's requests as the worker itself would."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection
from typing import NoReturn

from nvcf_worker.errors import WorkerError
from nvcf_worker.function.handlers import Handler
from nvcf_worker.function.loading import begin_all, end_all, until_unhealthy
from nvcf_worker.process.companions import Companion, cancelled
from nvcf_worker.process.loops import run_to_end
from nvcf_worker.run.executor import Executor
from nvcf_worker.run.processes.channel import CHANNEL_FD, Channel, Frame
from nvcf_worker.run.processes.served import ServedRequest
from nvcf_worker.run.stall_detector import LoopWatch, stall_seconds
from nvcf_worker.run.threads import ThreadPool
from nvcf_worker.telemetry import measurements
from nvcf_worker.telemetry.measurements import Measurement, measure_load
from nvcf_worker.telemetry.setup import child_telemetry

log = logging.getLogger("nvcf_worker")

STOP_PATIENCE = 5.0
TELEMETRY_PATIENCE = 2.0


def serve_requests(handler: Handler, companion: Companion | None) -> NoReturn:
    """Run the worker's requests until the worker sends STOP or is gone; then exit the process."""
    # Removed, so that processes which the function starts do not take themselves for children of a worker.
    end = socket.socket(fileno=int(os.environ.pop(CHANNEL_FD)))
    end.set_inheritable(False)
    code = 0
    telemetry = child_telemetry()
    try:
        run_to_end(_serve(handler, end, companion))
    except WorkerError as error:
        log.critical("%s", error)
        code = error.exit_code
    except Exception:
        log.exception("the process cannot go on")
        code = 1
    telemetry.shutdown(TELEMETRY_PATIENCE)
    _end(code)


def _end(code: int) -> NoReturn:
    sys.stdout.flush()
    logging.shutdown()
    # A handler that hangs must not keep the process alive.
    os._exit(code)


async def _serve(handler: Handler, end: socket.socket, companion: Companion | None) -> None:
    server = ChildServer(handler, asyncio.get_running_loop())
    channel = server.channel = await Channel.over(end, server.on_frame)
    measurements.listen(server.send_measurement)
    watch = LoopWatch(handler.name, server.running, limit=stall_seconds(os.environ), stuck=lambda _: _end(1))
    watching = asyncio.create_task(watch.run())
    async with _loaded(handler, companion, lambda reason: channel.send(Frame.UNHEALTHY, 0, reason.encode())):
        watch.serve()
        channel.send(Frame.READY)
        await asyncio.wait([channel.closed, server.stopping], return_when=asyncio.FIRST_COMPLETED)
        await server.cancel_all()
    watching.cancel()
    channel.close()
    async with asyncio.timeout(STOP_PATIENCE):
        await channel.closed


@contextlib.asynccontextmanager
async def _loaded(
    handler: Handler, companion: Companion | None, unhealthy: Callable[[str], None]
) -> AsyncIterator[None]:
    """Set up companion and handler objects, and tear them down at the end. Raises WorkerError.

    unhealthy: called with a reason when a handler object becomes unhealthy.
    """
    pool = ThreadPool(asyncio.get_running_loop())

    async def watch_health() -> None:
        unhealthy(await until_unhealthy(handler.loading, pool.run))

    async with contextlib.AsyncExitStack() as stack:
        if companion is not None:
            stack.push_async_callback(companion.stop)
            await companion.start()
            watching = asyncio.create_task(companion.watch(_NoAdmission()))
            stack.push_async_callback(cancelled, watching)
        stack.push_async_callback(end_all, handler.loading, pool.run)
        await measure_load(os.environ, begin_all(handler.loading, pool.run))
        stack.push_async_callback(cancelled, asyncio.create_task(watch_health()))
        yield


class _NoAdmission:
    """Does nothing: the worker decides which requests a child gets."""

    def pause(self) -> None:
        return None

    def resume(self) -> None:
        return None


class ChildServer:
    """Runs the requests of one channel."""

    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        self.executor = Executor(handler, ThreadPool(loop), loop)
        self.channel: Channel
        self._loop = loop
        self._thread = threading.get_ident()
        self.stopping: asyncio.Future[None] = loop.create_future()
        self._requests: dict[int, ServedRequest] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def on_frame(self, kind: Frame, number: int, payload: bytes) -> None:
        """Handle a frame from the worker."""
        if kind is Frame.START:
            request = self._requests[number] = ServedRequest(self.executor, self.channel, number, payload)
            task = asyncio.create_task(request.run())
            request.scope.task = task
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._ended(number, done))
        elif kind is Frame.STOP:
            if not self.stopping.done():
                self.stopping.set_result(None)
        elif (running := self._requests.get(number)) is not None:
            running.on_frame(kind, payload)

    def running(self) -> Collection[ServedRequest]:
        """Return the requests in flight."""
        return tuple(self._requests.values())

    def send_measurement(self, measurement: Measurement) -> None:
        """Send a value for the worker's metrics, from any thread."""
        payload = measurement.pack()
        if threading.get_ident() == self._thread:
            self.channel.send(Frame.MEASUREMENT, 0, payload)
        else:
            self._loop.call_soon_threadsafe(self.channel.send, Frame.MEASUREMENT, 0, payload)

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        self._requests.pop(number, None)
        self._tasks.discard(task)

    async def cancel_all(self) -> None:
        """Cancel the requests that still run, and wait for their end, at most STOP_PATIENCE seconds."""
        for request in tuple(self._requests.values()):
            request.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_PATIENCE)
