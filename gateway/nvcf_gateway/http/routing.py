"""Routing of callers' requests (protocol.md, section 4.1): pass-through first, then by path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from aiohttp import web

from nvcf_gateway.errors import HttpProblem
from nvcf_proto.errors import InvalidId
from nvcf_proto.headers import FUNCTION_ID, FUNCTION_VERSION_ID
from nvcf_proto.ids import is_id, parse_id

T = TypeVar("T")

Handler = Callable[[web.BaseRequest, dict[str, str]], Awaitable[web.StreamResponse]]
Route = tuple[str, str, Handler]
"""Method, path pattern, and what serves it."""


def path_id(values: dict[str, str], name: str) -> str:
    """Return a UUID from the path. Raises HttpProblem 404: nothing can exist under another name."""
    try:
        return parse_id(values[name], name)
    except InvalidId as error:
        raise HttpProblem(404, str(error)) from None


@dataclass(frozen=True)
class Target:
    """The function that a caller names, and its version if the caller names one."""

    function_id: str
    version_id: str | None = None


def pass_through_target(headers: Mapping[str, str], host: str) -> Target | None:
    """Return the target of a pass-through request, or None for a path route.

    Headers come first, then the first one or two UUID labels of the host name. A routing header that is not a
    UUID counts as absent, and so does a version without a function.
    """
    function_id = _routing_id(headers.get(FUNCTION_ID))
    if function_id is not None:
        return Target(function_id, _routing_id(headers.get(FUNCTION_VERSION_ID)))
    return _host_target(host)


def _host_target(host: str) -> Target | None:
    # A UUID label has 36 characters.
    if len(host) < 36:
        return None
    labels = host.lower().split(":", 1)[0].split(".")
    if not is_id(labels[0]):
        return None
    if len(labels) > 1 and is_id(labels[1]):
        return Target(labels[1], labels[0])
    return Target(labels[0])


def _routing_id(text: str | None) -> str | None:
    try:
        return None if text is None else parse_id(text.strip(), "routing header")
    except InvalidId:
        return None


@dataclass(frozen=True, slots=True)
class _Pattern(Generic[T]):
    """A pattern with the places of its literals and of its names, and what serves it by method."""

    text: str
    literals: list[tuple[int, str]]
    names: list[tuple[int, str]]
    methods: dict[str, T]

    @classmethod
    def of(cls, text: str, methods: dict[str, T]) -> _Pattern[T]:
        segments = list(enumerate(text.split("/")))
        literals = [(at, segment) for at, segment in segments if not segment.startswith("{")]
        names = [(at, segment[1:-1]) for at, segment in segments if segment.startswith("{")]
        return cls(text, literals, names, methods)

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """Return the values of the names in a path with the same number of segments, None without a match."""
        for at, literal in self.literals:
            if segments[at] != literal:
                return None
        values = {name: segments[at] for at, name in self.names}
        # No name stands for nothing.
        return None if "" in values.values() else values


class PathTable(Generic[T]):
    """Routes by method and path; `{name}` in a pattern matches one segment.

    Small on purpose: it is on the request path, and a pattern has only literals and names.
    """

    def __init__(self) -> None:
        self._literal: dict[str, dict[str, T]] = {}
        self._patterns: dict[int, list[_Pattern[T]]] = {}

    def add(self, method: str, pattern: str, handler: T) -> None:
        """Route `method` on `pattern` to `handler`."""
        if "{" not in pattern:
            self._literal.setdefault(pattern, {})[method] = handler
            return
        same_length = self._patterns.setdefault(pattern.count("/"), [])
        for known in same_length:
            if known.text == pattern:
                known.methods[method] = handler
                return
        same_length.append(_Pattern.of(pattern, {method: handler}))

    def routes(self) -> list[tuple[str, str]]:
        """Return methods and patterns of all routes, sorted."""
        found = [(method, path) for path, methods in self._literal.items() for method in methods]
        for same_length in self._patterns.values():
            for pattern in same_length:
                found += [(method, pattern.text) for method in pattern.methods]
        return sorted(found)

    def find(self, path: str) -> tuple[dict[str, T], dict[str, str]] | None:
        """Return the handlers by method and the values of the pattern's names; None for an unknown path."""
        literal = self._literal.get(path)
        if literal is not None:
            return literal, {}
        segments = path.split("/")
        for pattern in self._patterns.get(len(segments) - 1, ()):
            values = pattern.match(segments)
            if values is not None:
                return pattern.methods, values
        return None
