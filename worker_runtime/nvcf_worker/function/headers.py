"""Read-only multi-value mappings for headers and query parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping


class MultiMap(Mapping[str, str]):
    """Ordered names with one or more values each; `map[name]` is the first value."""

    __slots__ = ("_index", "_pairs")

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = tuple(pairs)
        index: dict[str, list[str]] = {}
        for name, value in self._pairs:
            index.setdefault(self._key(name), []).append(value)
        self._index = index

    @staticmethod
    def _key(name: str) -> str:
        return name

    def __getitem__(self, name: str) -> str:
        return self._index[self._key(name)][0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._key(name) in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def get_all(self, name: str) -> list[str]:
        """Every value of a name in the order of the request; empty when there is none."""
        return list(self._index.get(self._key(name), ()))

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every name and value as it came."""
        return self._pairs

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self._pairs)!r})"


class Headers(MultiMap):
    """HTTP headers: names compare without regard to case and iterate in lower case."""

    __slots__ = ()

    @staticmethod
    def _key(name: str) -> str:
        return name.lower()
