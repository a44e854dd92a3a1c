"""The child processes of a worker: a handler that passes requests to them, and their companion."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence, Set
from typing import Protocol, runtime_checkable

from nvcf_worker.errors import ProcessDied, RetryLater, WorkerError, first_error
from nvcf_worker.exchange.files import FileContext
from nvcf_worker.function.request import Request
from nvcf_worker.function.response import Outcome
from nvcf_worker.process.companions import Admission
from nvcf_worker.process.durations import Backoff
from nvcf_worker.run.processes.child_process import ChildProcess
from nvcf_worker.run.processes.dispatch import (
    CrashAction,
    Dispatcher,
    Suspects,
    crash_policy,
    describe_death,
    next_failures,
)
from nvcf_worker.run.processes.remote import RemoteRequest
from nvcf_worker.run.threads import wait_uninterrupted

log = logging.getLogger("nvcf_worker")

RESTART = Backoff(first=0.1, limit=30.0)
READY_TIMEOUT = 1800.0
STOP_PATIENCE = 10.0
BUSY_PATIENCE = 2.0
KILL_PATIENCE = 2.0
"""Seconds that a handler in a child has to end after its time limit; then the child is killed."""
RETRY_PATIENCE = 30.0
"""Seconds that a request whose process died waits for another process; then it goes back to the queue."""


@runtime_checkable
class HasSlots(Protocol):
    """A worker whose number of requests in flight can be limited."""

    def limit_slots(self, source: str, limit: int) -> None:
        """Limit the requests in flight to `limit`; each `source` has a limit of its own."""


@runtime_checkable
class CanFail(Protocol):
    """A worker that leaves when its instance is broken."""

    def unhealthy(self, reason: str) -> None:
        """Drain and leave."""


class ProcessHost:
    """Runs requests in child processes, each `per_child` at once at most.

    command: starts a child.
    environments: one for each child, the variables that differ from the worker's.
    retry: whether requests of a child that died are run once more.
    ready_timeout: seconds that a child may take to become ready.
    """

    def __init__(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        per_child: int,
        *,
        retry: bool = True,
        ready_timeout: float = READY_TIMEOUT,
    ) -> None:
        self._command = command
        self._environments = environments
        self._retry = retry
        self._ready_timeout = ready_timeout
        self._children: list[ChildProcess | None] = [None] * len(environments)
        self._dispatcher: Dispatcher[RemoteRequest] = Dispatcher(len(environments), per_child)
        self._numbers = itertools.count(1)
        self._suspects = Suspects()
        self._admission: Admission | None = None

    # --- companion

    async def start(self) -> None:
        """Start all children and wait until they are ready. Raises WorkerError if one of them fails."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for index in range(len(self._children)):
                    tasks.create_task(self._launch(index))
        except* WorkerError as group:
            raise first_error(group) from None

    async def watch(self, admission: Admission) -> None:
        """Restart children that die, until cancelled."""
        self._admission = admission
        self._update_capacity()
        async with asyncio.TaskGroup() as tasks:
            for index in range(len(self._children)):
                tasks.create_task(self._keep_running(index))

    async def stop(self) -> None:
        """Let the children tear down and end."""
        running = [child for child in self._children if child is not None]
        # Handlers that are still busy have used up the worker's grace period already.
        patience = [BUSY_PATIENCE if child.requests else STOP_PATIENCE for child in running]
        await asyncio.gather(*(child.stop(wait) for child, wait in zip(running, patience, strict=True)))
        for request in [request for child in running for request in child.requests.values()]:
            # `watch` has ended, so nobody else would end these requests.
            request.child_died(ProcessDied("The worker is leaving."), alone=False)

    async def _launch(self, index: int) -> None:
        child = await ChildProcess.launch(
            index, self._command, self._environments[index], self._ready_timeout, self._unhealthy
        )
        self._children[index] = child
        self._dispatcher.came_up(index)
        log.info("process %d is ready (pid %d)", index, child.process.pid)

    async def _keep_running(self, index: int) -> None:
        failures = 0
        while True:
            child = self._children[index]
            if child is not None:
                await child.disconnected()
                # Before the exit code is known, because requests sent to the child now would be lost.
                requests, alone = self._dispatcher.went_down(index)
                self._update_capacity()
                code = await child.exit_code()
                failures = next_failures(failures, time.monotonic() - child.started_at)
                self._lost(child, code, requests, alone=alone)
            await asyncio.sleep(RESTART.delay(max(0, failures - 1), random.random()))  # noqa: S311 - jitter
            try:
                await self._launch(index)
            except (WorkerError, OSError) as error:
                # Also lack of memory or descriptors, which must not affect the other children.
                failures += 1
                log.error("%s; trying again", error)
                continue
            self._update_capacity()
            self._place()

    def _unhealthy(self, reason: str) -> None:
        if isinstance(self._admission, CanFail):
            self._admission.unhealthy(reason)

    def _lost(self, child: ChildProcess, code: int, requests: Set[RemoteRequest], *, alone: bool) -> None:
        self._children[child.index] = None
        death = describe_death(code)
        ids = ", ".join(sorted(request.request.id for request in requests)) or "none"
        log.error(
            "process %d (pid %d) died: %s; requests in it: %s", child.index, child.process.pid, death, ids
        )
        for request in requests:
            self._suspects.add(request.request.id)
            text = f"The process that ran request {request.request.id} died: {death}."
            request.child_died(ProcessDied(text), alone=alone)
        self._place()

    def _update_capacity(self) -> None:
        admission, capacity = self._admission, self._dispatcher.capacity
        if admission is None:
            return
        if capacity == 0:
            admission.pause()
            return
        if isinstance(admission, HasSlots):
            admission.limit_slots("processes", capacity)
        admission.resume()

    # --- requests

    async def handle(self, request: Request) -> Outcome:
        """Run a request in a child; if the child dies, once more in another one, alone.

        Raises what the handler raises (HandlerFailed for errors that only the child knows), ProcessDied if
        children die because of the request, RetryLater if it has to go back to the queue.
        """
        for tries in itertools.count(request.attempt):
            remote = RemoteRequest(next(self._numbers), request, tries, self._ended)
            try:
                return await self._run(remote, retried=tries > request.attempt)
            except ProcessDied as error:
                if error is not remote.died:
                    raise
                action = crash_policy(
                    tries, alone=remote.died_alone, retry=self._retry, repeatable=remote.repeatable
                )
                if action is CrashAction.FAIL:
                    raise
                if action is CrashAction.REQUEUE:
                    raise RetryLater(error.detail, after=0.0) from error
            if isinstance(request._context, FileContext):
                await asyncio.to_thread(request._context.files.forget_results)
        raise AssertionError("unreachable")

    async def _run(self, remote: RemoteRequest, *, retried: bool) -> Outcome:
        request = remote.request
        self._dispatcher.add(remote, alone=self._suspects.must_run_alone(request.id, remote.tries))
        self._place()
        try:
            if retried and not await self._begun(remote):
                raise RetryLater(f"no process was free for request {request.id} in time", after=0.0)
            return await remote.outcome
        except asyncio.CancelledError:
            if not self._dispatcher.withdraw(remote):
                remote.cancel()
                await self._outlast(remote)
            self._place()
            raise

    async def _outlast(self, remote: RemoteRequest) -> None:
        """Wait until a cancelled handler has ended; after its time limit, kill the child that runs it."""
        limit = remote.request._expires
        await wait_uninterrupted(remote.ended, limit + KILL_PATIENCE if limit else math.inf)
        child = next((each for each in self._children if each and remote.number in each.requests), None)
        if not remote.ended.done() and child is not None:
            log.error("process %d is killed: request %s does not end", child.index, remote.request.id)
            await child.kill()
            await wait_uninterrupted(remote.ended)

    async def _begun(self, remote: RemoteRequest) -> bool:
        """Wait until a retried request has a child. Return False if that takes too long."""
        try:
            async with asyncio.timeout(RETRY_PATIENCE):
                await remote.begun.wait()
        except TimeoutError:
            if self._dispatcher.withdraw(remote):
                self._place()
                return False
        return True

    def _ended(self, remote: RemoteRequest) -> None:
        for child in self._children:
            if child is not None:
                child.requests.pop(remote.number, None)
        self._dispatcher.ended(remote)
        self._place()

    def _place(self) -> None:
        while (placed := self._dispatcher.place()) is not None:
            request, index = placed
            child = self._children[index]
            if child is None:
                raise RuntimeError(f"process {index} takes requests but does not exist")
            child.begin(request)
