"""Continuous batching: one loop of steps that requests can join and leave at any step."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nvcf_otel import names
from nvcf_otel.worker_instruments import BATCH_SIZE
from nvcf_worker.errors import BatchError
from nvcf_worker.process.loops import from_outside
from nvcf_worker.run.batching.calling import FunctionCaller
from nvcf_worker.run.batching.items import results_of
from nvcf_worker.run.batching.plan import ActiveSet
from nvcf_worker.run.batching.settings import ContinuousSettings
from nvcf_worker.run.batching.streams import ItemStream, Outlet
from nvcf_worker.telemetry.measurements import measure

log = logging.getLogger("nvcf_worker")


@dataclass(frozen=True, slots=True)
class Model:
    """The methods of the user's class; `start` and `finish` are optional."""

    name: str
    step: Callable[[list[Any]], Any]
    start: Callable[[Any], Any] | None
    finish: Callable[[Any], Any] | None


@dataclass(eq=False, slots=True)
class Sequence:
    """One request in the loop: its item, its stream, and the state that the model keeps for it."""

    item: Any
    outlet: Outlet
    state: Any = None
    started: bool = False


class StepLoop:
    """Runs the steps of one model in one event loop while there are sequences.

    A sequence whose reader is `buffer` outputs behind is left out of steps, so it does not delay the others.
    """

    def __init__(self, model: Model, settings: ContinuousSettings) -> None:
        self.loop = asyncio.get_running_loop()
        self._model = model
        self._attributes = {names.BATCH_FUNCTION: model.name}
        self._set: ActiveSet[Sequence] = ActiveSet(settings.max_active, settings.max_cost)
        self._buffer = settings.buffer
        self._caller = FunctionCaller(self.loop)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self, item: Any, cost: float = 1.0) -> ItemStream:
        """Let an item join, and return the stream of its outputs."""
        sequence = Sequence(item, Outlet(self._buffer, self._changed.set))
        self._set.add(sequence, cost)
        self._changed.set()
        if self._task is None:
            # In an empty context: the loop does not belong to one request.
            self._task = self.loop.create_task(self._run(), context=contextvars.Context())
        return ItemStream(sequence.outlet)

    async def _run(self) -> None:
        try:
            while len(self._set):
                self._changed.clear()
                await self._remove_closed()
                for sequence in self._set.admit():
                    await self._start(sequence)
                active = self._set.active
                ready = [one for one in active if one.outlet.open and not one.outlet.full]
                if ready:
                    await self._step(ready)
                    # A step that never waits must not keep the readers from the event loop.
                    await asyncio.sleep(0)
                elif active and all(one.outlet.open for one in active):
                    await self._changed.wait()
        finally:
            # There is no await between the last look at the set and this, so no sequence is overlooked.
            self._task = None
            for sequence in [*self._set.active, *self._set.waiting]:
                sequence.outlet.end(BatchError(f"{self._model.name} was stopped"))

    async def _start(self, sequence: Sequence) -> None:
        sequence.state = sequence.item
        if self._model.start is None:
            sequence.started = True
            return
        try:
            sequence.state = await self._caller.call(self._model.start, sequence.item)
            sequence.started = True
        except BaseException as error:
            if from_outside(error):
                raise
            sequence.outlet.end(error)

    async def _step(self, ready: list[Sequence]) -> None:
        name = self._model.name
        measure(BATCH_SIZE.name, len(ready), self._attributes)
        try:
            outputs = await self._caller.call(self._model.step, [one.state for one in ready])
            for sequence, output in zip(ready, results_of(outputs, len(ready), name), strict=True):
                sequence.outlet.give(output)
        except BaseException as error:
            if from_outside(error):
                raise
            # A failed step may have changed any of its sequences, but none that was left out of it.
            log.warning("%s failed in a step of %d sequences", name, len(ready))
            for sequence in ready:
                sequence.outlet.end(error)

    async def _remove_closed(self) -> None:
        for sequence in [*self._set.active, *self._set.waiting]:
            if sequence.outlet.open:
                continue
            self._set.leave(sequence)
            if sequence.started and self._model.finish is not None:
                try:
                    await self._caller.call(self._model.finish, sequence.state)
                except BaseException as error:
                    if from_outside(error):
                        raise
                    log.exception("%s failed to finish a sequence", self._model.name)
