"""What `@batch` and `@continuous_batch` were told."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from nvcf_worker.errors import HandlerError
from nvcf_worker.process.durations import parse_duration


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSettings:
    """Settings of one batch function. `max_wait` in seconds; see `batch` for the rest."""

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
        at_least_one("max_size", self.max_size)
        at_least_one("parallel", self.parallel)
        at_least_one("buffer", self.buffer)
        if (self.size is None) != (self.max_cost is None):
            raise HandlerError("@batch takes size and max_cost together: what an item costs and the budget")
        if self.max_cost is not None and not self.max_cost > 0:
            raise HandlerError(f"max_cost is {self.max_cost!r}; it must be above 0")


def at_least_one(name: str, value: object) -> None:
    """Raise HandlerError unless a setting is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise HandlerError(f"{name} is {value!r}; it must be a whole number from 1 on")


def seconds(name: str, value: str | float) -> float:
    """A length of time: seconds as a number, or text like "5ms". Raises HandlerError."""
    try:
        length = parse_duration(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError) as error:
        raise HandlerError(f"{name}: {error}") from None
    if not 0 <= length < float("inf"):
        raise HandlerError(f"{name} is {value!r}; it must be a length of time from 0 on")
    return length
