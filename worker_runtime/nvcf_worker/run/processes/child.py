"""The child's side: requests from the worker run here as they would in the worker itself."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from nvcf_worker.errors import WorkerError

if TYPE_CHECKING:
    from nvcf_worker.function.handlers import Handler
    from nvcf_worker.process.companions import Companion
    from nvcf_worker.run.processes.served import ServedCall
    from nvcf_worker.telemetry.measurements import Measurement

log = logging.getLogger("nvcf_worker")

CHANNEL_FD = "NVCF_WORKER_CHANNEL_FD"
"""Internal: the child's inherited end of the socket pair."""

STOP_PATIENCE = 5.0
TELEMETRY_PATIENCE = 2.0


def is_child() -> bool:
    """Whether this process was started by a worker to run its handler."""
    return CHANNEL_FD in os.environ


def serve_requests(handler: Handler, companion: Companion | None) -> NoReturn:
    """Run the worker's requests until it says stop or is gone; does not return."""
    # Imported here: `serve` of an ordinary worker needs none of it.
    from nvcf_worker.process.loops import loop_factory
    from nvcf_worker.telemetry.setup import child_telemetry

    # Taken out, so that processes which the function starts do not think they are children of a worker.
    descriptor = int(os.environ.pop(CHANNEL_FD))
    end = socket.socket(fileno=descriptor)
    end.set_inheritable(False)
    code = 0
    telemetry = child_telemetry()
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(handler, end, companion))
    except WorkerError as error:
        log.critical("%s", error)
        code = error.exit_code
    except Exception:
        log.exception("the process cannot go on")
        code = 1
    telemetry.shutdown(TELEMETRY_PATIENCE)
    # A handler that hangs must not keep the process alive.
    sys.stdout.flush()
    logging.shutdown()
    os._exit(code)


async def _serve(handler: Handler, end: socket.socket, companion: Companion | None) -> None:
    from nvcf_worker.run.processes.channel import Channel
    from nvcf_worker.run.processes.frames import Frame
    from nvcf_worker.run.processes.lives import living
    from nvcf_worker.telemetry import measurements

    server = ChildServer(handler, asyncio.get_running_loop())
    channel = server.channel = await Channel.over(end, server.on_frame)
    measurements.listen(server.tell)
    async with living(handler, companion, lambda reason: channel.send(Frame.UNHEALTHY, 0, reason.encode())):
        channel.send(Frame.READY)
        await asyncio.wait([channel.closed, server.stopping], return_when=asyncio.FIRST_COMPLETED)
        await server.end_calls()
    channel.close()
    async with asyncio.timeout(STOP_PATIENCE):
        await channel.closed


class ChildServer:
    """Runs the calls of one channel."""

    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
        from nvcf_worker.run.executor import Executor
        from nvcf_worker.run.processes.channel import Channel
        from nvcf_worker.run.threads import ThreadPool

        self.executor = Executor(handler, ThreadPool(loop), loop)
        self.channel: Channel
        self._loop = loop
        self._thread = threading.get_ident()
        self.stopping: asyncio.Future[None] = loop.create_future()
        self._calls: dict[int, ServedCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def on_frame(self, kind: int, number: int, payload: bytes) -> None:
        """A frame from the worker."""
        from nvcf_worker.run.processes.frames import Frame
        from nvcf_worker.run.processes.served import ServedCall

        if kind == Frame.START:
            call = self._calls[number] = ServedCall(self.executor, self.channel, number, payload)
            task = asyncio.create_task(call.run())
            call.scope.task = task
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._ended(number, done))
        elif kind == Frame.STOP:
            if not self.stopping.done():
                self.stopping.set_result(None)
        elif (present := self._calls.get(number)) is not None:
            present.on_frame(kind, payload)

    def tell(self, value: Measurement) -> None:
        """A value for the worker's figures, from any thread."""
        from nvcf_worker.run.processes.frames import Frame

        payload = value.pack()
        if threading.get_ident() == self._thread:
            self.channel.send(Frame.FIGURE, 0, payload)
        else:
            self._loop.call_soon_threadsafe(self.channel.send, Frame.FIGURE, 0, payload)

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        self._calls.pop(number, None)
        self._tasks.discard(task)

    async def end_calls(self) -> None:
        """Cancel what still runs; nobody waits for it any more."""
        for call in tuple(self._calls.values()):
            call.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_PATIENCE)
