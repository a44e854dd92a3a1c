"""Checking JSON values and texts against annotations.

Plain types and dataclasses are checked here, the same whatever is installed; pydantic models and msgspec
structs, and annotations with constraints of those libraries, by their own library.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from nvcf_worker.errors import HandlerError
from nvcf_worker.function.typed import checks
from nvcf_worker.function.typed.checks import Converter, Invalid, Problem, Where
from nvcf_worker.function.typed.libraries import Form, library_form


def form_of(annotation: Any, *, text: bool = False) -> Form:
    """Return how to check values of an annotation. text: they are text (path, query), not JSON.

    Raises HandlerError for annotations that cannot be checked.
    """
    library = library_form(annotation)
    if library is not None:
        return library
    plain = _plain(annotation, text=text)
    if plain is not None:
        return Form(plain)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return Form(_named(annotation, lambda: _dataclass(annotation)), structured=True)
    if typing.is_typeddict(annotation):
        return Form(_named(annotation, lambda: _typeddict(annotation)), structured=True)
    if isinstance(annotation, _ALIAS):
        return Form(_named(annotation, lambda: form_of(annotation.__value__, text=text).convert))
    generic = _generic(annotation, text=text)
    if generic is None:
        raise HandlerError(f"values of type {checks.name_of(annotation)} cannot be checked")
    return Form(generic, structured=typing.get_origin(annotation) in _MAPPINGS)


class _Later:
    """The check of a type inside itself, e.g. of the children of a node."""

    convert: Converter

    def __call__(self, value: Any, where: Where) -> Any:
        return self.convert(value, where)


_ALIAS: Any = getattr(typing, "TypeAliasType", ())  # from Python 3.12 on
_unfinished: dict[Any, _Later] = {}


def _named(annotation: Any, make: Callable[[], Converter]) -> Converter:
    """Return the check of a type that may contain itself. Raises HandlerError."""
    known = _unfinished.get(annotation)
    if known is not None:
        return known
    later = _unfinished[annotation] = _Later()
    try:
        later.convert = make()
    except NameError as error:
        raise HandlerError(
            f"the annotations of {checks.name_of(annotation)} cannot be read: {error}"
        ) from None
    finally:
        del _unfinished[annotation]
    return later.convert


def _plain(annotation: Any, *, text: bool) -> Converter | None:
    try:
        found = (checks.FROM_TEXT.get(annotation) if text else None) or checks.FROM_JSON.get(annotation)
    except TypeError:  # not hashable
        return None
    if found is not None:
        return found
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return checks.one_of({member.value: member for member in annotation}, text=text)
    if isinstance(annotation, typing.NewType):
        return form_of(annotation.__supertype__, text=text).convert
    return None


# --- generic types ---------------------------------------------------------------------------------------

_ARRAYS = {list: list, Sequence: list, Iterable: list, set: set, frozenset: frozenset}
_MAPPINGS = {dict, Mapping}


def _generic(annotation: Any, *, text: bool) -> Converter | None:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return form_of(arguments[0], text=text).convert
    if origin is Literal:
        return checks.one_of({value: value for value in arguments}, text=text)
    if origin in (typing.Union, types.UnionType):
        return checks.union([form_of(argument, text=text).convert for argument in arguments], annotation)
    if origin in _ARRAYS:
        return checks.items(_ARRAYS[origin], form_of(arguments[0], text=text).convert)
    if origin is tuple:
        return _tuple(arguments, text=text)
    if origin in _MAPPINGS and arguments[0] is str:
        return checks.values_of(form_of(arguments[1], text=text).convert)
    return None


def _tuple(arguments: tuple[Any, ...], *, text: bool) -> Converter:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return checks.items(tuple, form_of(arguments[0], text=text).convert)
    converters = [form_of(argument, text=text).convert for argument in arguments]

    def convert(value: Any, where: Where) -> Any:
        values = checks.json_array(value, where)
        if len(values) != len(converters):
            raise checks.expected(f"{len(converters)} items", where)
        steps = [(index, *pair) for index, pair in enumerate(zip(converters, values, strict=True))]
        return tuple(checks.collect(steps, where))

    return convert


# --- objects with named members --------------------------------------------------------------------------

Member = tuple[str, Converter, bool]


def _dataclass(annotation: Any) -> Converter:
    hints = typing.get_type_hints(annotation, include_extras=True)
    members = [
        (
            field.name,
            form_of(hints[field.name]).convert,
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(annotation)
        if field.init
    ]
    return _members(annotation, members)


def _typeddict(annotation: Any) -> Converter:
    hints = typing.get_type_hints(annotation)
    required = annotation.__required_keys__
    return _members(dict, [(name, form_of(hint).convert, name in required) for name, hint in hints.items()])


def _members(make: Callable[..., Any], members: list[Member]) -> Converter:
    def convert(value: Any, where: Where) -> Any:
        given = checks.json_object(value, where)
        missing: list[Problem] = [
            ((*where, name), "missing") for name, _, required in members if required and name not in given
        ]
        present = [(name, converter, given[name]) for name, converter, _ in members if name in given]
        try:
            found = checks.collect(present, where)
        except Invalid as error:
            raise Invalid([*missing, *error.problems]) from None
        if missing:
            raise Invalid(missing)
        try:
            return make(**{name: item for (name, _, _), item in zip(present, found, strict=True)})
        except ValueError as error:  # a dataclass that checks itself in __post_init__
            raise Invalid([(where, str(error))]) from None

    return convert
