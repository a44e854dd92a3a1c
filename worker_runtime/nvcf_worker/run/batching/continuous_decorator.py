"""`@continuous_batch`: turn a class with a `step` into a handler that streams to many callers at once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from nvcf_worker.errors import HandlerError
from nvcf_worker.function.handlers import runs_on_loop
from nvcf_worker.run.batching.calling import wait_for
from nvcf_worker.run.batching.settings import ContinuousSettings, SuggestsConcurrency


def continuous_batch(
    max_active: int = 16,
    *,
    size: Callable[[Any], float] | None = None,
    max_cost: float | None = None,
    prepare: Callable[[Any], Any] | None = None,
    buffer: int = 256,
) -> Callable[[Any], ContinuousBatch]:
    """Run the steps of the decorated class for up to `max_active` requests at once; each gets a stream.

    The class (or an instance) has the following methods, plain or async. They are called one after the other,
    the plain ones on one thread:

    - `step(active)`: one step of all active requests. `active` is a list of what `start` returned. The result
      is a list of outputs in the same order: a value for the stream, None for no output in this step,
      `Finished(value)` for the end of that stream, an exception for the failure of that stream.
    - `start(item)`, optional: called when an item becomes active; returns its state. Default: the item.
    - `finish(state)`, optional: called when a stream has ended, has failed or has lost its caller.
    - `setup()` and `teardown()`, optional: called once, before the first request and after the last.

    New requests join at the next step.

    max_active: maximum number of requests in a step.
    size, max_cost: the cost of an item, and the budget of all active items.
    prepare: makes the item from a request, for each request separately.
    buffer: how many outputs may wait for a reader. A slower reader is left out of steps; the others go on.

    Raises HandlerError for a class without `step` and for invalid settings.
    """
    if not isinstance(max_active, int):
        raise HandlerError("write @continuous_batch(), with parentheses")
    settings = ContinuousSettings(
        max_active=max_active, size=size, max_cost=max_cost, prepare=prepare, buffer=buffer
    )
    return lambda model: ContinuousBatch(model, settings)


class ContinuousBatch(SuggestsConcurrency):
    """A handler: a call with one request or item returns the stream of its outputs."""

    runs_on_loop = True

    def __init__(self, model: Any, settings: ContinuousSettings) -> None:
        if not callable(getattr(model, "step", None)):
            raise HandlerError("@continuous_batch decorates a class with a method step(active)")
        kind = model if isinstance(model, type) else type(model)
        self.__name__ = kind.__name__
        self.__qualname__ = kind.__qualname__
        self.__doc__ = kind.__doc__
        self.__module__ = kind.__module__
        self._make: Callable[[], Any] = model if isinstance(model, type) else lambda: model
        self._model: Any = None
        self._settings = settings
        self._preparer: Any = None
        self._loop: Any = None
        self._setting_up: asyncio.Lock | None = None
        # Twice as many as fit, so that a request waits for each place that becomes free.
        self.suggested_concurrency = 2 * settings.max_active
        self.register()

    async def setup(self) -> None:
        """Make the model and call its `setup`. The first request does this if nobody has done it before."""
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
        """Return the stream of one item's outputs. Raises what `prepare`, `size` or `setup` raises."""
        if self._model is None:
            await self.setup()
        loop = self._loop
        if loop is None or loop.loop is not asyncio.get_running_loop():
            loop = self._begin()
        prepared = await self._preparer.item(item)
        size = self._settings.size
        stream: AsyncIterator[Any] = loop.open(prepared, size(prepared) if size else 1.0)
        return stream

    def blocking(self, item: Any, /) -> Iterator[Any]:
        """Return the stream of one item as a plain iterator, in a plain handler, whose thread waits for it.

        Raises what a call raises, RequestCancelled if the request is cancelled meanwhile, RuntimeError in
        coroutines and on threads that do not run a handler.
        """
        stream: Iterator[Any] = wait_for(lambda: self(item))
        return stream

    def _begin(self) -> Any:
        # Imported here so that the decorator does not slow down the import of a function.
        from nvcf_worker.run.batching.continuous import Model, StepLoop
        from nvcf_worker.run.batching.items import Preparer

        model = self._model
        start = getattr(model, "start", None)
        self._preparer = Preparer(self._settings.prepare, sync_items=not runs_on_loop(start or model.step))
        parts = Model(self.__name__, model.step, start, getattr(model, "finish", None))
        self._loop = StepLoop(parts, self._settings)
        return self._loop


async def _call(function: Callable[[], Any] | None) -> None:
    if function is None:
        return
    result = function() if runs_on_loop(function) else await asyncio.to_thread(function)
    if inspect.isawaitable(result):
        await result
