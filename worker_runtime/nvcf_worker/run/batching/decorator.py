"""`@batch`: turn a function of many items into a function that is called with one item."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any

from nvcf_worker.errors import HandlerError
from nvcf_worker.function.handlers import runs_on_loop
from nvcf_worker.run.batching.calling import wait_for
from nvcf_worker.run.batching.settings import BatchSettings, SuggestsConcurrency, seconds


def batch(
    max_size: int = 32,
    max_wait: float | str = 0.005,
    *,
    bucket: Callable[[Any], Hashable] | None = None,
    size: Callable[[Any], float] | None = None,
    max_cost: float | None = None,
    prepare: Callable[[Any], Any] | None = None,
    isolate: bool = True,
    parallel: int = 1,
    buffer: int = 256,
) -> Callable[[Callable[..., Any]], Batched]:
    """Collect the items of several calls and pass them to the decorated function as one list.

    The decorated function (or method) may be plain (it runs on a thread, always the same one) or async. It
    returns one result per item, in order; a result that is an exception is raised for that item only. A
    generator, plain or async, yields one list per step, with one output per item: None for no output in this
    step, `Finished(value)` for the end of this item's stream, an exception for its failure. The decorated
    function is called with one item and awaited. When it is given to `serve`, items are requests.

    max_size: maximum number of items in a batch.
    max_wait: seconds that the oldest item waits for others; text like "5ms" is accepted, too. While
        `parallel` batches are running it waits until one of them has ended.
    bucket: key of an item; only items with equal keys share a batch.
    size, max_cost: the cost of an item, and the budget of a batch. An item above the budget goes alone.
    prepare: makes the item from a request (parsing, decoding), for each request separately.
    isolate: when the function raises on a batch, call it again with each item alone, so that only the bad
        items fail. Switch it off if a call must not be repeated.
    parallel: maximum number of batches that run at once.
    buffer: how many outputs of a stream may wait for its reader before the generator waits.

    Raises HandlerError for invalid settings.
    """
    if callable(max_size):
        raise HandlerError("write @batch(), with parentheses")
    settings = BatchSettings(
        max_size=max_size,
        max_wait=seconds("max_wait", max_wait),
        bucket=bucket,
        size=size,
        max_cost=max_cost,
        prepare=prepare,
        isolate=isolate,
        parallel=parallel,
        buffer=buffer,
    )
    return lambda function: Batched(function, settings)


class Batched(SuggestsConcurrency):
    """A batch function, called with one item. If it is a method, each instance has its own batches."""

    runs_on_loop = True

    def __init__(self, function: Callable[..., Any], settings: BatchSettings) -> None:
        if not callable(function):
            raise HandlerError(f"@batch decorates a function; got {type(function).__name__}")
        functools.update_wrapper(self, function)
        self._function = function
        self._settings = settings
        self._attribute = ""
        self._preparer: Any = None
        self._batcher: Any = None
        self.__signature__ = _signature("item")
        self.suggested_concurrency = 2 * settings.max_size * settings.parallel
        self.register()

    async def __call__(self, item: Any, /) -> Any:
        """Return the result for one item, which may be a stream. Raises what the function raised for it."""
        batcher = self._batcher
        if batcher is None or batcher.loop is not asyncio.get_running_loop():
            batcher = self._begin()
        return await batcher.submit(await self._preparer.item(item))

    def blocking(self, item: Any, /) -> Any:
        """Return the result for one item, in a plain handler, whose thread waits for it.

        A stream becomes a plain iterator. Raises what the function raised for the item, RequestCancelled if
        the request is cancelled meanwhile, RuntimeError in coroutines and on threads that do not run a
        handler.
        """
        return wait_for(lambda: self(item))

    def _begin(self) -> Any:
        # Imported here so that the decorator does not slow down the import of a function.
        from nvcf_worker.run.batching.batcher import Batcher
        from nvcf_worker.run.batching.items import Preparer

        name = getattr(self._function, "__qualname__", type(self._function).__name__)
        self._preparer = Preparer(self._settings.prepare, sync_items=not runs_on_loop(self._function))
        self._batcher = Batcher(self._function, self._settings, name)
        return self._batcher

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = name
        self.__signature__ = _signature("self", "item")

    def __get__(self, instance: Any, owner: type | None = None) -> Batched:
        if instance is None:
            return self
        # Not under the attribute's own name: special methods such as __call__ are looked up on the type.
        key = f"_batched_{self._attribute}"
        members = getattr(instance, "__dict__", None)
        if members is None:
            raise HandlerError(f"@batch on a method needs instances with a __dict__; {owner} has none")
        bound = members.get(key)
        if bound is None:
            bound = members[key] = Batched(self._function.__get__(instance), self._settings)
        return bound  # type: ignore[no-any-return]


def _signature(*names: str) -> inspect.Signature:
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in names])
