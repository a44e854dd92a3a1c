"""Asks Triton about its models every second: for the worker's slots and for its metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Protocol

from nvcf_worker.run import slot_limits
from nvcf_worker.run.tritonserver.slots import Totals, first_slots, next_slots, totals_of
from nvcf_worker.run.tritonserver.spec import ModelSpec
from nvcf_worker.run.tritonserver.telemetry import report
from nvcf_worker.triton.errors import TritonRefused
from nvcf_worker.triton.shared_memory import SharedMemory
from nvcf_worker.triton.transport import Transport

log = logging.getLogger("nvcf_worker")

INTERVAL = 1.0
_AWAY = frozenset(("UNAVAILABLE", "NOT_FOUND", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED"))
"""What Triton's absence looks like; a model that is not loaded and a server that stands still are away."""


class Watched(Protocol):
    """A model whose statistics are followed."""

    name: str
    version: str
    spec: ModelSpec | None


class ModelState:
    """What is known of one model: its slots, totals, and the most requests in flight since the last look."""

    def __init__(self, model: Watched, spec: ModelSpec) -> None:
        self.model = model
        self.slots = first_slots(spec.capacity)
        self.totals: Totals | None = None
        self.most_in_flight = 0

    @property
    def key(self) -> str:
        """Return the name of its limit."""
        return f"triton {self.model.name} {self.model.version}".rstrip()


class Watch:
    """Follows the models of one connection. Its task runs from the first model to `close`."""

    def __init__(self, transport: Transport, memory: SharedMemory | None) -> None:
        self._transport = transport
        self._memory = memory
        self._states: dict[str, ModelState] = {}
        self._task: asyncio.Task[None] | None = None
        self.unreachable_since: float | None = None

    async def follow(self, model: Watched, spec: ModelSpec) -> ModelState:
        """Limit the worker's slots for a model from now on, and report what it does from now on."""
        state = ModelState(model, spec)
        state = self._states.setdefault(state.key, state)
        if state.totals is None:
            with contextlib.suppress(TritonRefused):
                state.totals = totals_of(await self._transport.statistics(model.name, model.version))
        slot_limits.limit(state.key, state.slots)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="nvcf-triton-watch")
        return state

    @property
    def states(self) -> Mapping[str, ModelState]:
        """Return the models, by the names of their limits."""
        return self._states

    async def close(self) -> None:
        """End the task."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self._look()
            except Exception:
                log.exception("the statistics of Triton could not be read")

    async def _look(self) -> None:
        for state in tuple(self._states.values()):
            try:
                found = await self._transport.statistics(state.model.name, state.model.version)
            except TritonRefused as refused:
                self._unavailable(state, refused)
                continue
            if self.unreachable_since is not None:
                self.unreachable_since = None
                log.info("Triton is available again")
            self._update(state, totals_of(found))
        if self._memory is not None:
            await self._memory.tick()

    def _unavailable(self, state: ModelState, refused: TritonRefused) -> None:
        """Take no requests while nobody can run them: they wait in the queue, where others find them."""
        if refused.status not in _AWAY:
            log.warning("Triton gives no statistics of %s: %s", state.model.name, refused)
            return
        if self.unreachable_since is None:
            self.unreachable_since = time.monotonic()
            log.error("Triton is not available (%s); no requests are taken until it is", refused.text)
        slot_limits.limit(state.key, 0)

    def _update(self, state: ModelState, totals: Totals) -> None:
        earlier, state.totals = state.totals, totals
        done = totals.since(earlier or Totals())
        report(state.model.name, totals, done if earlier is not None else Totals())
        spec = state.model.spec
        if spec is not None and earlier is not None:
            used = state.most_in_flight >= state.slots
            state.slots = next_slots(state.slots, spec.capacity, done, used=used)
        state.most_in_flight = 0
        slot_limits.limit(state.key, state.slots)
