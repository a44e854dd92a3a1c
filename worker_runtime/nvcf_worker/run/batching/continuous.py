"""Continuous batching: one loop of steps that new requests join and finished ones leave at any step."""

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
from nvcf_worker.run.batching.active_set import ActiveSet
from nvcf_worker.run.batching.calling import Caller
from nvcf_worker.run.batching.items import results_of
from nvcf_worker.run.batching.streams import ItemStream, Outlet
from nvcf_worker.telemetry.values import tell

log = logging.getLogger("nvcf_worker")


@dataclass(frozen=True, slots=True)
class Model:
    """The parts of the user's class; all but `step` may be missing."""

    name: str
    step: Callable[[list[Any]], Any]
    start: Callable[[Any], Any] | None
    finish: Callable[[Any], Any] | None


class Sequence:
    """One request's way through the loop."""

    __slots__ = ("item", "outlet", "started", "state")

    def __init__(self, item: Any, outlet: Outlet) -> None:
        self.item = item
        self.outlet = outlet
        self.state: Any = None
        self.started = False


class StepLoop:
    """Runs the steps of one model in one event loop while there are sequences.

    A sequence whose reader is `buffer` outputs behind sits steps out, and so holds nobody up.
    """

    def __init__(self, model: Model, *, max_active: int, max_cost: float | None, buffer: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._model = model
        self._attributes = {names.BATCH_FUNCTION: model.name}
        self._set: ActiveSet[Sequence] = ActiveSet(max_active, max_cost)
        self._buffer = buffer
        self._caller = Caller(self.loop)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def open(self, item: Any, cost: float = 1.0) -> ItemStream:
        """Let an item join; its outputs come out of the stream."""
        sequence = Sequence(item, Outlet(self._buffer, self._changed.set))
        self._set.add(sequence, cost)
        self._changed.set()
        if self._task is None:
            # An empty context: the loop belongs to no single request.
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
                    # A step that never waits must not keep the readers from the loop.
                    await asyncio.sleep(0)
                elif active and all(one.outlet.open for one in active):
                    await self._changed.wait()
        finally:
            # Nothing can come between the last look at the set and this.
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
        except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            sequence.outlet.end(error)

    async def _step(self, ready: list[Sequence]) -> None:
        name = self._model.name
        tell(BATCH_SIZE.name, len(ready), self._attributes)
        try:
            outputs = await self._caller.call(self._model.step, [one.state for one in ready])
            for sequence, output in zip(ready, results_of(outputs, len(ready), name), strict=True):
                sequence.outlet.give(output)
        except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            # A step that failed may have touched any of its sequences; those that sat it out are untouched.
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
                except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
                    raise
                except BaseException:
                    log.exception("%s failed to finish a sequence", self._model.name)
