"""Settings of batch functions, and what users give or read beside the decorators: `Finished`, concurrency."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from nvcf_worker.errors import HandlerError
from nvcf_worker.process.durations import parse_duration


class Finished:
    """Returned in place of an output: the item's stream ends here, after `value` if one is given."""

    __slots__ = ("value",)

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Finished()" if self.value is None else f"Finished({self.value!r})"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSettings:
    """Settings of `@batch`, see there. `max_wait` is in seconds. Raises HandlerError for invalid values."""

    max_size: int
    max_wait: float
    bucket: Callable[[Any], Hashable] | None
    size: Callable[[Any], float] | None
    max_cost: float | None
    prepare: Callable[[Any], Any] | None
    isolate: bool
    parallel: int
    buffer: int

    def __post_init__(self) -> None:
        _positive("max_size", self.max_size)
        _positive("parallel", self.parallel)
        _positive("buffer", self.buffer)
        _budget(self.size, self.max_cost)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinuousSettings:
    """Settings of `@continuous_batch`, see there. Raises HandlerError for invalid values."""

    max_active: int
    size: Callable[[Any], float] | None
    max_cost: float | None
    prepare: Callable[[Any], Any] | None
    buffer: int

    def __post_init__(self) -> None:
        _positive("max_active", self.max_active)
        _positive("buffer", self.buffer)
        _budget(self.size, self.max_cost)


def _positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise HandlerError(f"{name} is {value!r}; it must be an integer, 1 or above")


def _budget(size: object, max_cost: float | None) -> None:
    if (size is None) != (max_cost is None):
        raise HandlerError("size and max_cost must be given together: the cost of an item and the budget")
    if max_cost is not None and not max_cost > 0:
        raise HandlerError(f"max_cost is {max_cost!r}; it must be above 0")


def seconds(name: str, value: str | float) -> float:
    """Return a duration in seconds, given as a number or as text like "5ms". Raises HandlerError."""
    try:
        length = parse_duration(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError) as error:
        raise HandlerError(f"{name}: {error}") from None
    if not 0 <= length < float("inf"):
        raise HandlerError(f"{name} is {value!r}; it must be a duration, 0 or above")
    return length


class SuggestsConcurrency:
    """A handler that works best with several requests in flight at once."""

    suggested_concurrency = 1

    def register(self) -> None:
        """Include it in `suggested_concurrency()`."""
        _instances.add(self)


_instances: weakref.WeakSet[SuggestsConcurrency] = weakref.WeakSet()


def suggested_concurrency() -> int:
    """Return the number of slots that the batch functions of this process can fill; 1 if there are none."""
    return max((one.suggested_concurrency for one in _instances), default=1)
