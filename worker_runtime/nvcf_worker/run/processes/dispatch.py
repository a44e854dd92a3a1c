"""Decide which child gets which request, and what happens to the requests of a child that died. No I/O."""

from __future__ import annotations

import enum
import signal
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from nvcf_broker.process import describe_exit

MAX_TRIES = 3
MAX_SUSPECTS = 1024
STABLE_SECONDS = 60.0

T = TypeVar("T")


@dataclass(slots=True)
class _Child(Generic[T]):
    up: bool = False
    load: set[T] = field(default_factory=set)
    # The child runs a request that must run alone, or takes no requests so that it becomes free for one.
    exclusive: bool = False
    emptying: bool = False


class Dispatcher(Generic[T]):
    """Lets requests wait in order and gives each to the least loaded child, at most `per_child` at once.

    A request that must run alone, because it was in a child that crashed, gets a child for itself. If all
    children are busy, one of them takes no more requests until it is empty.
    """

    def __init__(self, children: int, per_child: int) -> None:
        self._per_child = per_child
        self._children: list[_Child[T]] = [_Child() for _ in range(children)]
        self._waiting: dict[T, bool] = {}
        self._places: dict[T, int] = {}

    @property
    def capacity(self) -> int:
        """The number of requests that can be in flight in the children that are up."""
        return self._per_child * sum(child.up for child in self._children)

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a child."""
        return len(self._waiting)

    def came_up(self, index: int) -> None:
        """Mark a child as up and empty."""
        self._children[index] = _Child(up=True)

    def went_down(self, index: int) -> tuple[set[T], bool]:
        """Mark a child as down. Return the requests that it ran, and whether it was only one."""
        lost = self._children[index].load
        self._children[index] = _Child()
        for request in lost:
            del self._places[request]
        return lost, len(lost) == 1

    def add(self, request: T, *, alone: bool) -> None:
        """Add a request that waits for a child."""
        self._waiting[request] = alone

    def withdraw(self, request: T) -> bool:
        """Remove a waiting request. Return False if it does not wait any more."""
        alone = self._waiting.pop(request, None)
        if alone:
            self._stop_emptying()
        return alone is not None

    def ended(self, request: T) -> None:
        """Remove a request from its child."""
        index = self._places.pop(request, None)
        if index is not None:
            child = self._children[index]
            child.load.discard(request)
            if not child.load:
                child.exclusive = child.emptying = False

    def place(self) -> tuple[T, int] | None:
        """Return the next request that has a child now, and the child's index; call it until it is None."""
        for request, alone in self._waiting.items():
            index = self._empty_child() if alone else self._open_child()
            if index is None:
                continue
            del self._waiting[request]
            self._places[request] = index
            child = self._children[index]
            child.load.add(request)
            child.exclusive = alone
            child.emptying = False
            if alone:
                self._stop_emptying()
            return request, index
        return None

    def _stop_emptying(self) -> None:
        # Only as long as no other request waits for a child of its own.
        if not any(self._waiting.values()):
            for child in self._children:
                child.emptying = False

    def _open_child(self) -> int | None:
        able = [
            (len(child.load), index)
            for index, child in enumerate(self._children)
            if child.up and not (child.exclusive or child.emptying) and len(child.load) < self._per_child
        ]
        return min(able)[1] if able else None

    def _empty_child(self) -> int | None:
        up = [index for index, child in enumerate(self._children) if child.up]
        for index in up:
            if not self._children[index].load:
                return index
        # None is empty: let the least loaded one become so.
        shared = [index for index in up if not self._children[index].exclusive]
        if shared and not any(self._children[index].emptying for index in up):
            chosen = min(shared, key=lambda index: len(self._children[index].load))
            self._children[chosen].emptying = True
        return None


class CrashAction(enum.Enum):
    """What happens to a request whose child died."""

    RETRY = "run it in another child"
    REQUEUE = "give it back to the queue"
    FAIL = "return an error to the caller"


def crash_policy(tries: int, *, alone: bool, retry: bool, repeatable: bool) -> CrashAction:
    """Decide what happens to a request whose child died.

    tries: deliveries and retries so far, from 1.
    alone: nothing else ran in the child.
    retry: whether requests may be retried at all.
    repeatable: everything that another try needs is in the worker.

    A first crash may have any cause, e.g. lack of memory. A request that was alone in a later crash is taken
    as the cause; others get one more try. A retry in the worker uses up none of the queue's few deliveries.
    """
    if not retry or (tries > 1 and alone) or tries >= MAX_TRIES:
        return CrashAction.FAIL
    return CrashAction.RETRY if repeatable else CrashAction.REQUEUE


def describe_death(code: int) -> str:
    """Describe how a child ended, with the usual cause if there is one."""
    text = describe_exit(code)
    if code == -signal.SIGKILL:
        return f"{text}, which is what happens when memory runs out"
    if code == -signal.SIGSEGV:
        return f"{text}, a fault in native code"
    return text


class Suspects:
    """The ids of the last MAX_SUSPECTS requests that were in a child when it died."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, request_id: str) -> None:
        """Add a request."""
        self._ids[request_id] = None
        self._ids.move_to_end(request_id)
        if len(self._ids) > MAX_SUSPECTS:
            self._ids.popitem(last=False)

    def must_run_alone(self, request_id: str, attempt: int) -> bool:
        """Whether this delivery must not share a child, so that a further crash affects no other request."""
        return request_id in self._ids or attempt >= MAX_TRIES


def next_failures(failures: int, lived: float) -> int:
    """Return the number of failures in a row for the backoff, after a child that lived `lived` seconds."""
    return 0 if lived >= STABLE_SECONDS else failures + 1
