"""One child process, as the worker sees it: started, ready, running requests, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from nvcf_broker.process import describe_exit, stop_process
from nvcf_worker.errors import NotReady
from nvcf_worker.process.children import spawn
from nvcf_worker.run.processes.channel import CHANNEL_FD, Channel, Frame
from nvcf_worker.run.processes.remote import RemoteRequest
from nvcf_worker.telemetry import measurements
from nvcf_worker.telemetry.setup import current

log = logging.getLogger("nvcf_worker")

END_PATIENCE = 2.0


class ChildProcess:
    """A process made by `launch`. `requests` are those that it runs, by number."""

    def __init__(self, index: int, unhealthy: Callable[[str], None]) -> None:
        self.index = index
        self._unhealthy = unhealthy
        self.requests: dict[int, RemoteRequest] = {}
        self.channel: Channel
        self.process: asyncio.subprocess.Process
        self.started_at = time.monotonic()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def launch(
        cls,
        index: int,
        command: Sequence[str],
        changes: Mapping[str, str],
        timeout: float,
        unhealthy: Callable[[str], None],
    ) -> ChildProcess:
        """Start a child and wait until it takes requests.

        changes: environment variables that differ from the worker's. timeout: seconds until it must be ready.
        unhealthy: called with a reason when the child's function becomes unhealthy.

        Raises NotReady if the child ends or is not ready in time, ConfigurationError if it cannot be started.
        Then no process is left behind.
        """
        child = cls(index, unhealthy)
        ours, theirs = socket.socketpair()
        try:
            descriptor = theirs.fileno()
            environment = {**os.environ, **changes, **current().environment(), CHANNEL_FD: str(descriptor)}
            child.process = await spawn(command, environment, pass_fds=[descriptor])
            child.channel = await Channel.over(ours, child._on_frame)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            await child._until_ready(timeout)
        except BaseException:
            await child.kill()
            raise
        return child

    async def _until_ready(self, timeout: float) -> None:
        await asyncio.wait(
            [self._ready, self.channel.closed], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if self._ready.done():
            return
        if not self.channel.closed.done():
            raise NotReady(f"process {self.index} was not ready within {timeout:g} s")
        code = await self.exit_code()
        raise NotReady(
            f"process {self.index} ended before it was ready ({describe_exit(code)}); its log says why"
        )

    def _on_frame(self, kind: Frame, number: int, payload: bytes) -> None:
        if kind is Frame.READY:
            if not self._ready.done():
                self._ready.set_result(None)
        elif kind is Frame.UNHEALTHY:
            self._unhealthy(f"process {self.index}: {payload.decode(errors='replace')}")
        elif kind is Frame.MEASUREMENT:
            measurements.received(payload)
        elif (request := self.requests.get(number)) is not None:
            request.on_frame(kind, payload)

    def begin(self, request: RemoteRequest) -> None:
        """Run a request in this child."""
        self.requests[request.number] = request
        request.begin(self.channel)

    async def disconnected(self) -> None:
        """Wait until the channel is closed, which means that the child has ended or is about to end."""
        await asyncio.wait([self.channel.closed])

    async def exit_code(self) -> int:
        """Return the exit code of a disconnected child, as asyncio reports it. Kill the child if it hangs."""
        try:
            async with asyncio.timeout(END_PATIENCE):
                await self.process.wait()
        except TimeoutError:
            await self.kill()
        return self.process.returncode if self.process.returncode is not None else 0

    async def kill(self) -> None:
        """Kill the child and the processes that it has started."""
        self.channel.abort()
        await stop_process(self.process, 0)

    async def stop(self, patience: float) -> None:
        """Let the child tear down and exit. Kill it if that takes longer than `patience` seconds."""
        self.channel.send(Frame.STOP)
        try:
            async with asyncio.timeout(patience):
                await self.process.wait()
        except TimeoutError:
            log.warning("process %d did not end within %g s and is killed", self.index, patience)
        finally:
            await self.kill()
