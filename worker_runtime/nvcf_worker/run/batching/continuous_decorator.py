"""`@continuous_batch`: a class with a `step` becomes a handler that streams to many callers at once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from nvcf_worker.errors import HandlerError
from nvcf_worker.run.batching.calling import runs_on_loop
from nvcf_worker.run.batching.decorator import Suggesting
from nvcf_worker.run.batching.settings import at_least_one


def continuous_batch(
    max_active: int = 16,
    *,
    size: Callable[[Any], float] | None = None,
    max_cost: float | None = None,
    prepare: Callable[[Any], Any] | None = None,
    buffer: int = 256,
) -> Callable[[Any], ContinuousBatch]:
    """Run the steps of the decorated class for up to `max_active` requests at once; each gets a stream.

    The class (or an instance) has, each plain or a coroutine function, all called one after the other and
    the plain ones on one thread:

    - `step(active)`: one step of all active requests. `active` is a list of what `start` returned; the result
      is a list of outputs in the same order: a value for the stream, None for nothing in this step,
      `Finished(value)` for the end of that stream, an exception for the failure of that one.
    - `start(item)`, optional: called when an item becomes active; returns its state. Without it the item is.
    - `finish(state)`, optional: called when a stream has ended, failed or lost its caller.
    - `setup()` and `teardown()`, optional: once, before the first request and after the last.

    New requests join at the next step. max_active: requests that take part in a step at most. size,
    max_cost: what an item costs and the budget of all active ones. prepare: makes the item of a request, for
    each by itself. buffer: outputs that may wait for a reader; a slower one sits steps out, the others go on.

    Raises HandlerError for a class without `step` and for settings that make no sense.
    """
    if not isinstance(max_active, int):
        raise HandlerError("write @continuous_batch(), with parentheses")
    at_least_one("max_active", max_active)
    at_least_one("buffer", buffer)
    if (size is None) != (max_cost is None):
        raise HandlerError("@continuous_batch takes size and max_cost together")

    def decorate(model: Any) -> ContinuousBatch:
        return ContinuousBatch(model, max_active, size, max_cost, prepare, buffer)

    return decorate


class ContinuousBatch(Suggesting):
    """A handler: called with one request or item, it gives that one's stream of outputs."""

    runs_on_loop = True

    def __init__(
        self,
        model: Any,
        max_active: int,
        size: Callable[[Any], float] | None,
        max_cost: float | None,
        prepare: Callable[[Any], Any] | None,
        buffer: int,
    ) -> None:
        if not callable(getattr(model, "step", None)):
            raise HandlerError("@continuous_batch decorates a class with a method step(active)")
        kind = model if isinstance(model, type) else type(model)
        self.__name__ = kind.__name__
        self.__qualname__ = kind.__qualname__
        self.__doc__ = kind.__doc__
        self.__module__ = kind.__module__
        self._make: Callable[[], Any] = model if isinstance(model, type) else lambda: model
        self._model: Any = None
        self._max_active = max_active
        self._size = size
        self._max_cost = max_cost
        self._prepare = prepare
        self._buffer = buffer
        self._preparer: Any = None
        self._loop: Any = None
        self._setting_up: asyncio.Lock | None = None
        # Twice as many as fit, so that one waits for each place that becomes free.
        self.suggested_concurrency = 2 * max_active
        self.register()

    async def setup(self) -> None:
        """Make the model and call its `setup`; also done by the first request."""
        self._setting_up = self._setting_up or asyncio.Lock()
        async with self._setting_up:
            if self._model is not None:
                return
            model = await asyncio.to_thread(self._make)
            await _call(getattr(model, "setup", None))
            self._model = model

    async def teardown(self) -> None:
        """Call the model's `teardown`."""
        model, self._model = self._model, None
        await _call(getattr(model, "teardown", None))

    async def __call__(self, item: Any, /) -> AsyncIterator[Any]:
        """The stream of one item's outputs. Raises what `prepare`, `size` or the model's `setup` raises."""
        if self._model is None:
            await self.setup()
        loop = self._loop
        if loop is None or loop.loop is not asyncio.get_running_loop():
            loop = self._begin()
        prepared = await self._preparer.item(item)
        stream: AsyncIterator[Any] = loop.open(prepared, self._size(prepared) if self._size else 1.0)
        return stream

    def blocking(self, item: Any, /) -> Iterator[Any]:
        """The stream of one item's outputs as a plain iterator, from a plain handler, whose thread waits.

        Raises as a call does, RequestCancelled when the request's caller leaves meanwhile, RuntimeError in
        coroutines and on threads that are no handler's.
        """
        from nvcf_worker.run.batching.blocking import wait_for

        stream: Iterator[Any] = wait_for(lambda: self(item))
        return stream

    def _begin(self) -> Any:
        from nvcf_worker.run.batching.adapting import Preparer
        from nvcf_worker.run.batching.continuous import Model, StepLoop

        model = self._model
        start = getattr(model, "start", None)
        self._preparer = Preparer(self._prepare, sync_items=not runs_on_loop(start or model.step))
        parts = Model(self.__name__, model.step, start, getattr(model, "finish", None))
        self._loop = StepLoop(
            parts, max_active=self._max_active, max_cost=self._max_cost, buffer=self._buffer
        )
        return self._loop


async def _call(function: Callable[[], Any] | None) -> None:
    if function is None:
        return
    result = function() if runs_on_loop(function) else await asyncio.to_thread(function)
    if inspect.isawaitable(result):
        await result
