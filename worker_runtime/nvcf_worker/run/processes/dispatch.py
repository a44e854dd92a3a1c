"""Which child gets which request, and when. Values in, values out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Child(Generic[T]):
    up: bool = False
    load: set[T] = field(default_factory=set)
    # One request runs here that shares with nobody, or the child runs empty for such a one.
    exclusive: bool = False
    emptying: bool = False


class Dispatcher(Generic[T]):
    """Requests wait in order and go to the child with the least to do, `per_child` at once at most.

    A request that is to run alone (it was in a child that crashed) gets a child for itself; if all are
    busy, one takes nothing more until it is empty.
    """

    def __init__(self, children: int, per_child: int) -> None:
        self._per_child = per_child
        self._children: list[_Child[T]] = [_Child() for _ in range(children)]
        self._waiting: dict[T, bool] = {}
        self._places: dict[T, int] = {}

    @property
    def capacity(self) -> int:
        """Requests that the children that are up can have in work."""
        return self._per_child * sum(child.up for child in self._children)

    @property
    def waiting(self) -> int:
        """Requests without a child."""
        return len(self._waiting)

    def came_up(self, index: int) -> None:
        """A child takes requests."""
        self._children[index] = _Child(up=True)

    def went_down(self, index: int) -> tuple[set[T], bool]:
        """A child is gone: the requests it had, and whether it was only one."""
        lost = self._children[index].load
        self._children[index] = _Child()
        for request in lost:
            del self._places[request]
        return lost, len(lost) == 1

    def add(self, request: T, *, alone: bool) -> None:
        """Let a request wait for a child."""
        self._waiting[request] = alone

    def withdraw(self, request: T) -> bool:
        """Take a waiting request out; False if it waits no more."""
        alone = self._waiting.pop(request, None)
        if alone:
            self._fill_again()
        return alone is not None

    def ended(self, request: T) -> None:
        """A request has left its child."""
        index = self._places.pop(request, None)
        if index is not None:
            child = self._children[index]
            child.load.discard(request)
            if not child.load:
                child.exclusive = child.emptying = False

    def place(self) -> tuple[T, int] | None:
        """The next request that has a child now, and that child's index; to be called until None."""
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
                self._fill_again()
            return request, index
        return None

    def _fill_again(self) -> None:
        """Where nobody waits for a child of its own, none runs empty."""
        if not any(self._waiting.values()):
            for child in self._children:
                child.emptying = False

    def _open_child(self) -> int | None:
        best: int | None = None
        for index, child in enumerate(self._children):
            if not child.up or child.exclusive or child.emptying or len(child.load) >= self._per_child:
                continue
            if best is None or len(child.load) < len(self._children[best].load):
                best = index
        return best

    def _empty_child(self) -> int | None:
        """An empty child; if there is none, let one run empty."""
        up = [index for index, child in enumerate(self._children) if child.up]
        for index in up:
            if not self._children[index].load:
                return index
        shared = [index for index in up if not self._children[index].exclusive]
        if shared and not any(self._children[index].emptying for index in up):
            chosen = min(shared, key=lambda index: len(self._children[index].load))
            self._children[chosen].emptying = True
        return None
