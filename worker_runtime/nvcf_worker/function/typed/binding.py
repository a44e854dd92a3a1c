"""Calling handlers with typed parameters: the request, members of the body, path, query."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nvcf_worker.errors import HandlerError, InvalidInput
from nvcf_worker.function.content import parse_json
from nvcf_worker.function.typed.checks import Converter, Invalid, Problem
from nvcf_worker.function.typed.conversion import form_of

REQUEST_TYPES = frozenset(("Request", "SyncRequest", "RequestInfo"))
_ARRAY_ORIGINS = (list, set, frozenset, tuple)


class Query:
    """Marks a parameter that comes from the query: `top: Annotated[int, Query("top-k")] = 10`."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name


class Source(enum.Enum):
    """Where a parameter's value comes from."""

    PATH = enum.auto()
    QUERY = enum.auto()
    MEMBER = enum.auto()
    BODY = enum.auto()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `wire` is its name in the request; `many`: every value of that name in the query."""

    name: str
    wire: str
    source: Source
    convert: Converter
    required: bool
    many: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How a handler is called: the request first if it takes one, everything else by name."""

    takes_request: bool
    parameters: tuple[Parameter, ...]

    @property
    def needs_body(self) -> bool:
        """Whether any value comes from the body."""
        return any(parameter.source in (Source.MEMBER, Source.BODY) for parameter in self.parameters)

    def values(self, path: Mapping[str, str], query: Any, body: bytes) -> dict[str, Any]:
        """Return values by parameter name. `query` is a MultiMap. Raises BadInput (no JSON), InvalidInput."""
        content = self._content(body) if self.needs_body else None
        found: dict[str, Any] = {}
        problems: list[Problem] = []
        for parameter in self.parameters:
            where = () if parameter.source is Source.BODY else (parameter.wire,)
            try:
                value = _raw(parameter, path, query, content)
                if value is not _MISSING:
                    found[parameter.name] = parameter.convert(value, where)
                elif parameter.required:
                    problems.append((where, "missing"))
            except Invalid as error:
                problems += error.problems
            except RecursionError:
                problems.append((where, "nested too deeply"))
        if problems:
            raise InvalidInput([(".".join(map(str, where)), message) for where, message in problems])
        return found

    def _content(self, body: bytes) -> Any:
        whole = any(parameter.source is Source.BODY for parameter in self.parameters)
        if not body and not whole:
            return {}
        content = parse_json(body)
        if not whole and not isinstance(content, dict):
            raise InvalidInput([("", "expected an object")])
        return content


_MISSING: Any = object()


def _raw(parameter: Parameter, path: Mapping[str, str], query: Any, content: Any) -> Any:
    if parameter.source is Source.BODY:
        return content
    if parameter.source is Source.MEMBER:
        return content.get(parameter.wire, _MISSING)
    if parameter.source is Source.PATH:
        return path.get(parameter.wire, _MISSING)
    if parameter.many:
        return query.get_all(parameter.wire) or _MISSING
    return query.get(parameter.wire, _MISSING)


def plan_of(
    function: Callable[..., Any],
    signature: inspect.Signature | None,
    *,
    path_names: Collection[str] = (),
    from_query: bool = False,
) -> Plan | None:
    """Return how to call a handler with this signature; None when it only takes the request.

    function: where the annotations are; a handler without a signature takes the request. path_names:
    parameters of its route's path. from_query: whether plain parameters come from the query, as on routes
    whose methods have no body. Raises HandlerError.
    """
    if signature is None:
        return None
    parameters = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if not parameters:
        if any(item.kind is item.VAR_POSITIONAL for item in signature.parameters.values()):
            return None
        raise HandlerError("a handler takes one argument, the request, or typed parameters; this takes none")
    hints = _hints(function)
    takes_request = _is_request(parameters[0], hints, path_names)
    rest = [
        parameter
        for parameter in parameters[1 if takes_request else 0 :]
        # A parameter with a default and no annotation is not filled in.
        if parameter.name in hints or parameter.default is parameter.empty or parameter.name in path_names
    ]
    if not rest:
        return None
    return Plan(takes_request, tuple(_placed(rest, hints, path_names, from_query)))


def _placed(
    rest: list[inspect.Parameter], hints: dict[str, Any], path_names: Collection[str], from_query: bool
) -> list[Parameter]:
    found: list[Parameter] = []
    structured: list[str] = []
    for parameter in rest:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise HandlerError(f"parameter {parameter.name!r} is positional only; only the request may be")
        hint = hints.get(parameter.name, str if parameter.name in path_names else _MISSING)
        if hint is _MISSING:
            raise HandlerError(
                f"a handler takes one argument, the request; parameter {parameter.name!r} needs an "
                "annotation that says what it is"
            )
        made, is_structured = _parameter(parameter, hint, path_names, from_query)
        found.append(made)
        if is_structured and made.source is Source.MEMBER:
            structured.append(parameter.name)
    members = [parameter for parameter in found if parameter.source is Source.MEMBER]
    if len(members) == 1 and structured:
        found[found.index(members[0])] = dataclasses.replace(members[0], source=Source.BODY)
    return found


def _parameter(
    parameter: inspect.Parameter, hint: Any, path_names: Collection[str], from_query: bool
) -> tuple[Parameter, bool]:
    name, wire = parameter.name, parameter.name
    metadata = getattr(hint, "__metadata__", ())
    marker = next((item for item in metadata if isinstance(item, Query) or item is Query), None)
    if name in path_names:
        source = Source.PATH
    elif marker is not None or from_query:
        source = Source.QUERY
        wire = getattr(marker, "name", None) or name
    else:
        source = Source.MEMBER
    bare = hint.__origin__ if metadata else hint
    many = source is Source.QUERY and typing.get_origin(bare) in _ARRAY_ORIGINS
    try:
        form = form_of(hint, text=source in (Source.PATH, Source.QUERY))
    except HandlerError as error:
        raise HandlerError(f"parameter {name!r}: {error}") from None
    required = parameter.default is parameter.empty
    return Parameter(name, wire, source, form.convert, required, many), form.structured


def _is_request(parameter: inspect.Parameter, hints: Mapping[str, Any], path_names: Collection[str]) -> bool:
    if parameter.name in path_names or parameter.kind is parameter.KEYWORD_ONLY:
        return False
    hint = hints.get(parameter.name, _MISSING)
    if hint is _MISSING or hint is Any or hint is object:
        return True
    if isinstance(hint, str):  # cannot be evaluated, e.g. imported for type checking only
        return hint.rpartition(".")[2] in REQUEST_TYPES or parameter.name == "request"
    return getattr(hint, "__name__", "") in REQUEST_TYPES or parameter.name == "request"


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of parameters; text for one that cannot be evaluated."""
    raw = dict(getattr(function, "__annotations__", {}))
    raw.pop("return", None)
    try:
        found = typing.get_type_hints(function, include_extras=True)
        return {name: found[name] for name in raw}
    except (NameError, TypeError, AttributeError):
        pass
    scope = getattr(sys.modules.get(getattr(function, "__module__", "")), "__dict__", {})
    return {name: _evaluated(hint, scope) for name, hint in raw.items()}


def _evaluated(hint: Any, scope: dict[str, Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        # The annotation is the author's own code, in the module that holds it.
        return eval(hint, scope)  # noqa: S307
    except (NameError, TypeError, AttributeError):
        return hint


def bound(call: Callable[..., Any], plan: Plan, *, loops: bool) -> Callable[[Any], Any]:
    """Return a handler of one request that calls `call` by the plan. loops: whether it gets a `Request`."""
    leading = plan.takes_request

    if loops:

        async def on_loop(request: Any) -> Any:
            body = request._decoded(await request.read()) if plan.needs_body else b""
            values = plan.values(request.path_params, request.query, body)
            result = call(request, **values) if leading else call(**values)
            return await result if inspect.isawaitable(result) else result

        return on_loop

    def on_thread(request: Any) -> Any:
        body = request._decoded(request.read()) if plan.needs_body else b""
        values = plan.values(request.path_params, request.query, body)
        return call(request, **values) if leading else call(**values)

    return on_thread
