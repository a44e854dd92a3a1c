"""Several named routes in one function: `App`."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import unquote

from nvcf_worker.errors import HandlerError, MethodNotAllowed, NotFound
from nvcf_worker.function.handlers import Handler, Kind, classify
from nvcf_worker.function.limit import Limit
from nvcf_worker.function.loading import Loading

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

BODYLESS = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_METHOD = re.compile(r"[A-Z][A-Z-]*")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A route's path. `/items/{id}` takes one segment, `/files/{name:path}` the rest, slashes included."""

    text: str
    names: tuple[str, ...]
    expression: re.Pattern[str] | None

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Parse a path. Raises HandlerError for a malformed one."""
        if not text.startswith("/"):
            raise HandlerError(f"route {text!r} must begin with /")
        names = [match.group(1) for match in _PARAMETER.finditer(text)]
        if len(set(names)) != len(names):
            raise HandlerError(f"route {text!r} names a parameter twice")
        rest = _PARAMETER.sub("", text)
        if "{" in rest or "}" in rest:
            raise HandlerError(f"route {text!r} has a malformed parameter; write {{name}} or {{name:path}}")
        if not names:
            return cls(text, (), None)
        return cls(text, tuple(names), re.compile(_expression(text), re.DOTALL))

    def match(self, path: str) -> dict[str, str] | None:
        """Return the decoded parameters when the path, as it was sent, fits."""
        if self.expression is None:
            return {} if unquote(path) == self.text else None
        found = self.expression.fullmatch(path)
        if found is None:
            return None
        return {name: unquote(value) for name, value in found.groupdict().items()}


def _expression(text: str) -> str:
    parts: list[str] = []
    end = 0
    for match in _PARAMETER.finditer(text):
        parts.append(re.escape(text[end : match.start()]))
        parts.append(f"(?P<{match.group(1)}>{'.+' if match.group(2) else '[^/]+'})")
        end = match.end()
    return "".join((*parts, re.escape(text[end:])))


@dataclass(frozen=True, slots=True)
class Route:
    """One handler under one path."""

    pattern: Pattern
    methods: frozenset[str]
    handler: Handler


class RouteTable:
    """Finds the handler of a request: exact paths first, then patterns in the order of the routes."""

    def __init__(self, routes: Iterable[Route]) -> None:
        routes = tuple(routes)
        self._exact: dict[str, list[Route]] = {}
        self._patterns = [route for route in routes if route.pattern.names]
        for route in routes:
            if not route.pattern.names:
                self._exact.setdefault(route.pattern.text, []).append(route)

    def match(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """Return handler and path parameters. Raises NotFound and MethodNotAllowed.

        path: as it was sent. HEAD goes to the route of GET where it has none of its own.
        """
        found = self._fitting(path)
        if not found:
            raise NotFound(f"this function has no route {path}")
        wanted = [method, "GET"] if method == "HEAD" else [method]
        for candidate in wanted:
            for route, parameters in found:
                if candidate in route.methods:
                    return route.handler, parameters
        allowed = sorted({name for route, _ in found for name in route.methods})
        raise MethodNotAllowed(f"{path} is not served for {method}", allowed)

    def _fitting(self, path: str) -> list[tuple[Route, dict[str, str]]]:
        exact = self._exact.get(path) or self._exact.get(unquote(path))
        found: list[tuple[Route, dict[str, str]]] = [(route, {}) for route in exact or ()]
        for route in self._patterns:
            parameters = route.pattern.match(path)
            if parameters is not None:
                found.append((route, parameters))
        return found


class App:
    """A function of several routes: `@app.route("/v1/embed", methods=["POST"])`, then `serve(app)`.

    Each handler may be of any kind that `serve` takes. Pass-through calls reach them by the caller's own
    method and path; exec and pexec by the path that the version was created with (`inferenceUrl`).
    """

    def __init__(self) -> None:
        self._routes: list[tuple[Pattern, frozenset[str], object, str | None, Limit | None]] = []
        self._hooks: dict[str, list[Callable[[], Any]]] = {"setup": [], "warmup": [], "teardown": []}

    def route(
        self,
        path: str,
        methods: Iterable[str] = ("POST",),
        *,
        media_type: str | None = None,
        limit: Limit | None = None,
    ) -> Callable[[Decorated], Decorated]:
        """Serve a path by the decorated handler, a class with `__call__` included.

        path: `/v1/items/{id}`; `{rest:path}` takes several segments. media_type: as for `serve`.
        limit: on this route's requests in flight, others wait in the worker; routes may share one.
        Raises HandlerError for a malformed path or method.
        """
        pattern = Pattern.parse(path)
        wanted = frozenset(method.upper() for method in methods)
        if not wanted or not all(_METHOD.fullmatch(method) for method in wanted):
            raise HandlerError(f"route {path!r}: methods are names like GET and POST")

        def add(handler: Decorated) -> Decorated:
            for known, known_methods, *_ in self._routes:
                if known.text == path and wanted & known_methods:
                    twice = ", ".join(sorted(wanted & known_methods))
                    raise HandlerError(f"route {path!r} is there twice for {twice}")
            self._routes.append((pattern, wanted, handler, media_type, limit))
            return handler

        return add

    def setup(self, function: Decorated) -> Decorated:
        """Run the decorated function before the first request; the instance is ready after it."""
        self._hooks["setup"].append(function)
        return function

    def warmup(self, function: Decorated) -> Decorated:
        """Run the decorated function after everything is set up."""
        self._hooks["warmup"].append(function)
        return function

    def teardown(self, function: Decorated) -> Decorated:
        """Run the decorated function after the last request."""
        self._hooks["teardown"].append(function)
        return function

    def _as_handler(self, media_type: str | None = None) -> Handler:
        """Return all routes as one handler. Raises HandlerError that names an unusable route."""
        if not self._routes:
            raise HandlerError("the App has no routes")
        routes = []
        # Each function becomes an object with one hook.
        loading = [
            Loading(functools.partial(SimpleNamespace, **{name: function}), "App")
            for name, functions in self._hooks.items()
            for function in functions
        ]
        for pattern, methods, function, own_type, limit in self._routes:
            try:
                media = own_type or media_type
                handler = classify(function, media, path_names=pattern.names, from_query=methods <= BODYLESS)
            except HandlerError as error:
                raise HandlerError(f"route {pattern.text}: {error}") from None
            if limit is not None:
                handler = dataclasses.replace(handler, limit=limit)
            routes.append(Route(pattern, methods, handler))
            loading += handler.loading
        return Handler(_unrouted, Kind.ASYNC, media_type, "App", tuple(loading), RouteTable(routes))


def _unrouted(request: Mapping[str, Any]) -> None:
    raise RuntimeError("requests of an App go to its routes")
