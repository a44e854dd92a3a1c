"""The child processes of a worker: its handler (`handle`) and companion."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Mapping, Sequence, Set
from typing import Protocol, runtime_checkable

from nvcf_worker.errors import ProcessDied, RetryLater, WorkerError, first_error
from nvcf_worker.exchange.files import FileContext
from nvcf_worker.function.request import Request
from nvcf_worker.function.response import Outcome
from nvcf_worker.process.backoff import Backoff
from nvcf_worker.process.companions import Admission
from nvcf_worker.run.processes.call import Call
from nvcf_worker.run.processes.crash import Suspects, Verdict, describe_death, next_start, verdict
from nvcf_worker.run.processes.dispatch import Dispatcher
from nvcf_worker.run.processes.process import ChildProcess

log = logging.getLogger("nvcf_worker")

RESTART = Backoff(first=0.1, limit=30.0)
READY_TIMEOUT = 1800.0
STOP_PATIENCE = 10.0
BUSY_PATIENCE = 2.0
REPEAT_PATIENCE = 30.0
"""Seconds that a request whose process died waits for another one here; then the queue has it."""


@runtime_checkable
class HasSlots(Protocol):
    """A worker that can be told how many requests it may have in work."""

    def limit_slots(self, source: str, limit: int) -> None:
        """Have at most so many requests in work from now on, as far as `source` knows."""


@runtime_checkable
class CanFail(Protocol):
    """A worker that leaves when its instance is broken."""

    def fail(self, reason: str) -> None:
        """Drain and leave."""


class ProcessHost:
    """Runs requests in `len(environments)` child processes, each `per_child` at once at most.

    command: what starts a child; `environments` what each has in place of the worker's environment.
    retry: whether requests of a child that died are tried once more, or fail at once.
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
        self._dispatcher: Dispatcher[Call] = Dispatcher(len(environments), per_child)
        self._numbers = itertools.count(1)
        self._suspects = Suspects()
        self._admission: Admission | None = None

    @property
    def pids(self) -> list[int | None]:
        """Process ids of the children, None for one that is down."""
        return [None if child is None else child.process.pid for child in self._children]

    # --- companion -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all children and wait until they are ready. Raises WorkerError when one fails to."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for index in range(len(self._children)):
                    tasks.create_task(self._launch(index))
        except* WorkerError as group:
            raise first_error(group) from None

    async def watch(self, admission: Admission) -> None:
        """Start children again that died."""
        self._admission = admission
        self._tell_capacity()
        async with asyncio.TaskGroup() as tasks:
            for index in range(len(self._children)):
                tasks.create_task(self._keep(index))

    async def stop(self) -> None:
        """Let the children tear down and end."""
        running = [child for child in self._children if child is not None]
        # Handlers that are still busy after the worker's grace are not waited for again.
        patience = [BUSY_PATIENCE if child.calls else STOP_PATIENCE for child in running]
        await asyncio.gather(*(child.stop(wait) for child, wait in zip(running, patience, strict=True)))
        for call in [call for child in running for call in child.calls.values()]:
            # Nobody watches any more, and whoever has cancelled it waits for its end.
            call.child_died(ProcessDied("The worker is leaving."), alone=False)

    async def _launch(self, index: int) -> None:
        child = await ChildProcess.launch(
            index, self._command, self._environments[index], self._ready_timeout, self._unhealthy
        )
        self._children[index] = child
        self._dispatcher.came_up(index)
        log.info("process %d is ready (pid %d)", index, child.process.pid)

    async def _keep(self, index: int) -> None:
        failures = 0
        while True:
            child = self._children[index]
            if child is not None:
                await child.cut_off()
                # Before its exit code is known, which may take a while: what came to it now would be lost.
                calls, alone = self._dispatcher.went_down(index)
                self._tell_capacity()
                code = await child.exit_code()
                failures = next_start(failures, time.monotonic() - child.started_at)
                self._lost(child, code, calls, alone=alone)
            await asyncio.sleep(RESTART.delay(max(0, failures - 1), random.random()))  # noqa: S311 - jitter
            try:
                await self._launch(index)
            except (WorkerError, OSError) as error:
                # Want of memory or of descriptors, too, for which the other children must not pay.
                failures += 1
                log.error("%s; it is tried again", error)
                continue
            self._tell_capacity()
            self._place()

    def _unhealthy(self, reason: str) -> None:
        log.critical("this instance is unhealthy: %s", reason)
        if isinstance(self._admission, CanFail):
            self._admission.fail(reason)

    def _lost(self, child: ChildProcess, code: int, calls: Set[Call], *, alone: bool) -> None:
        self._children[child.index] = None
        death = describe_death(code)
        ids = ", ".join(sorted(call.request.id for call in calls)) or "none"
        log.error(
            "process %d (pid %d) died: %s; requests in it: %s", child.index, child.process.pid, death, ids
        )
        for call in calls:
            self._suspects.add(call.request.id)
            text = f"The process that ran request {call.request.id} died: {death}."
            call.child_died(ProcessDied(text), alone=alone)
        self._place()

    def _tell_capacity(self) -> None:
        admission, capacity = self._admission, self._dispatcher.capacity
        if admission is None:
            return
        if capacity == 0:
            admission.pause()
            return
        if isinstance(admission, HasSlots):
            admission.limit_slots("processes", capacity)
        admission.resume()

    # --- requests --------------------------------------------------------------------------------

    async def handle(self, request: Request) -> Outcome:
        """Run one request in a child; once more, alone, in another one when its child dies.

        Raises what its handler raises (HandlerFailed for errors that only the child knows), ProcessDied when
        children die over it, RetryLater when it has to be tried again elsewhere.
        """
        for tries in itertools.count(request.attempt):
            call = Call(next(self._numbers), request, tries, self)
            try:
                return await self._run(call, repeated=tries > request.attempt)
            except ProcessDied as error:
                if error is not call.died:
                    raise
                decided = verdict(
                    tries, alone=call.alone_in_death, retry=self._retry, repeatable=call.repeatable
                )
                if decided is Verdict.FAIL:
                    raise
                if decided is Verdict.HAND_BACK:
                    raise RetryLater(error.detail, after=0.0) from error
            if isinstance(request._context, FileContext):
                await asyncio.to_thread(request._context.files.forget_results)
        raise AssertionError("unreachable")

    async def _run(self, call: Call, *, repeated: bool) -> Outcome:
        request = call.request
        self._dispatcher.add(call, alone=self._suspects.must_run_alone(request.id, call.tries))
        self._place()
        try:
            if repeated and not await self._begun(call):
                raise RetryLater(f"no process was free for request {request.id} in time", after=0.0)
            return await call.outcome
        except asyncio.CancelledError:
            if not self._dispatcher.withdraw(call):
                call.cancel()
                await call.wait_ended()
            self._place()
            raise

    async def _begun(self, call: Call) -> bool:
        """Wait for a repeated call's child; False when there is none for so long that others shall try."""
        try:
            async with asyncio.timeout(REPEAT_PATIENCE):
                await call.begun.wait()
        except TimeoutError:
            if self._dispatcher.withdraw(call):
                self._place()
                return False
        return True

    def call_ended(self, call: Call) -> None:
        """A child has done with a call."""
        for child in self._children:
            if child is not None:
                child.calls.pop(call.number, None)
        self._dispatcher.ended(call)
        self._place()

    def _place(self) -> None:
        while (placed := self._dispatcher.place()) is not None:
            call, index = placed
            child = self._children[index]
            if child is None:
                raise RuntimeError(f"process {index} takes requests and is not there")
            child.begin(call)


def child_command(executable: str, original: Sequence[str]) -> list[str]:
    """The command line that started this process, for a child to run the same file up to `serve`."""
    return [executable, *original[1:]]
