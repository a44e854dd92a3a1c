"""`@batch`: a function of many items becomes one that is called with one."""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from nvcf_worker.errors import HandlerError
from nvcf_worker.run.batching.calling import runs_on_loop
from nvcf_worker.run.batching.settings import BatchSettings, seconds

_in_this_process: weakref.WeakSet[Suggesting] = weakref.WeakSet()


class Suggesting:
    """Something that works best with several requests in work at once."""

    suggested_concurrency = 1

    def register(self) -> None:
        """Let `suggested_concurrency()` know of it."""
        _in_this_process.add(self)


def suggested_concurrency() -> int:
    """Slots that the batch functions of this process can fill; 1 if there are none."""
    return max((one.suggested_concurrency for one in _in_this_process), default=1)


def batch(
    max_size: int = 32,
    max_wait: str | float = "5ms",
    *,
    bucket: Callable[[Any], Hashable] | None = None,
    size: Callable[[Any], float] | None = None,
    max_cost: float | None = None,
    prepare: Callable[[Any], Any] | None = None,
    isolate: bool = True,
    parallel: int = 1,
    buffer: int = 256,
) -> Callable[[Callable[..., Any]], Batched]:
    """Collect the items of several calls and give them to the decorated function as one list.

    The decorated function (or method) may be plain (it runs on a thread of its own, always the same one) or
    a coroutine function. It returns one result an item, in order; a result that is an exception is raised
    for that item alone. As a generator, plain or async, it yields one list a step, with one output an item:
    None is nothing in this step, `Finished(value)` the end of this item's stream, an exception its failure.
    What comes out is called with one item and awaited; given to `serve`, items are requests.

    max_size: items in a batch at most.
    max_wait: seconds, or text such as "5ms", that the oldest item waits for others at most; with all places
        for running batches taken it waits until one is free.
    bucket: key of an item; only items with equal keys come into one batch.
    size, max_cost: what an item costs, and the budget of a batch. An item above the budget goes alone.
    prepare: makes the item of a request (parsing, decoding), for each request by itself.
    isolate: when the function raises on a batch, call it again with each item alone, so that only the bad
        ones fail. Switch it off where a call must not be repeated.
    parallel: batches that run at once.
    buffer: outputs of a stream that may wait for its reader before the generator waits.

    Raises HandlerError for settings that make no sense.
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


class Batched(Suggesting):
    """A batch function, to be called with one item; of a method, each instance has its own batches."""

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
        """The result for one item, which may be a stream. Raises what the function raised for it."""
        batcher = self._batcher
        if batcher is None or batcher.loop is not asyncio.get_running_loop():
            batcher = self._begin()
        return await batcher.submit(await self._preparer.item(item))

    def blocking(self, item: Any, /) -> Any:
        """The result for one item, from a plain handler, whose thread waits for it.

        A stream comes as a plain iterator. Raises what the function raised for the item, RequestCancelled
        when the request's caller leaves meanwhile, RuntimeError in coroutines and on threads that are no
        handler's.
        """
        from nvcf_worker.run.batching.blocking import wait_for

        return wait_for(lambda: self(item))

    def _begin(self) -> Any:
        # Imported here so that the decorator costs a function nothing at import.
        from nvcf_worker.run.batching.adapting import Preparer
        from nvcf_worker.run.batching.batcher import Batcher

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
        # Under another name than the attribute's: special methods such as __call__ are looked up on the type.
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
