"""Checking JSON values and texts against annotations.

Plain types and dataclasses are checked here, the same whatever is installed; pydantic models and msgspec
structs, and annotations with constraints of those libraries, by their own library.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import enum
import sys
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from nvcf_worker.errors import HandlerError

Where = tuple[str | int, ...]
Problem = tuple[Where, str]
Converter = Callable[[Any, Where], Any]


class Invalid(Exception):
    """A value does not fit. `problems` are pairs of the place and what is wrong there."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


class Form(NamedTuple):
    """How an annotation is checked. `structured`: an object with named members, fit to be a whole body."""

    convert: Converter
    structured: bool = False


def form_of(annotation: Any, *, text: bool = False) -> Form:
    """How to check values of an annotation; `text`: they come as text (path, query), not as JSON.

    Raises HandlerError for annotations that cannot be checked.
    """
    library = _library_form(annotation)
    if library is not None:
        return library
    plain = _plain(annotation, text=text)
    if plain is not None:
        return Form(plain)
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return Form(_members(annotation, _dataclass_members(annotation)), structured=True)
    if typing.is_typeddict(annotation):
        return Form(_members(dict, _typeddict_members(annotation)), structured=True)
    generic = _generic(annotation, text=text)
    if generic is None:
        raise HandlerError(f"values of type {_name(annotation)} cannot be checked")
    return Form(generic, structured=typing.get_origin(annotation) in _MAPPINGS)


# --- libraries ---------------------------------------------------------------------------------------


def _library_form(annotation: Any) -> Form | None:
    metadata = getattr(annotation, "__metadata__", ())
    modules = {type(item).__module__.partition(".")[0] for item in metadata}
    base = annotation.__origin__ if metadata else annotation
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is not None:
        is_model = isinstance(base, type) and issubclass(base, pydantic.BaseModel)
        is_dataclass = isinstance(base, type) and hasattr(base, "__pydantic_validator__")
        if is_model or is_dataclass or modules & {"pydantic", "annotated_types"}:
            return Form(_by_pydantic(pydantic, annotation), structured=is_model or is_dataclass)
    msgspec: Any = sys.modules.get("msgspec")
    if msgspec is not None:
        is_struct = isinstance(base, type) and issubclass(base, msgspec.Struct)
        if is_struct or "msgspec" in modules:
            return Form(_by_msgspec(msgspec, annotation), structured=is_struct)
    return None


def _by_pydantic(pydantic: Any, annotation: Any) -> Converter:
    adapter = pydantic.TypeAdapter(annotation)

    def convert(value: Any, where: Where) -> Any:
        try:
            return adapter.validate_python(value)
        except pydantic.ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            raise Invalid([((*where, *item["loc"]), item["msg"]) for item in found]) from None

    return convert


def _by_msgspec(msgspec: Any, annotation: Any) -> Converter:
    def convert(value: Any, where: Where) -> Any:
        try:
            return msgspec.convert(value, annotation, strict=not isinstance(value, str))
        except msgspec.ValidationError as error:
            # `Expected `int`, got `str` - at `$.items[0].price``: the form msgspec documents.
            message, _, place = str(error).partition(" - at `$")
            inner = place.rstrip("`").replace("[", ".").replace("]", "").strip(".")
            raise Invalid([((*where, *inner.split(".")) if inner else where, message)]) from None

    return convert


# --- plain types ---------------------------------------------------------------------------------------


def _expected(what: str, where: Where) -> Invalid:
    return Invalid([(where, f"expected {what}")])


def _anything(value: Any, where: Where) -> Any:
    return value


def _nothing(value: Any, where: Where) -> None:
    if value is not None:
        raise _expected("null", where)


def _text(value: Any, where: Where) -> str:
    if not isinstance(value, str):
        raise _expected("a text", where)
    return value


def _boolean(value: Any, where: Where) -> bool:
    if not isinstance(value, bool):
        raise _expected("true or false", where)
    return value


def _boolean_text(value: Any, where: Where) -> bool:
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False,
             "off": False}  # fmt: skip
    found = known.get(str(value).strip().lower())
    if found is None:
        raise _expected("true or false", where)
    return found


def _whole(value: Any, where: Where) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _expected("a whole number", where)
    return value


def _whole_text(value: Any, where: Where) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise _expected("a whole number", where) from None


def _number(value: Any, where: Where) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _expected("a number", where)
    return float(value)


def _number_text(value: Any, where: Where) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise _expected("a number", where) from None


def _base64(value: Any, where: Where) -> bytes:
    try:
        return base64.b64decode(_text(value, where), validate=True)
    except binascii.Error:
        raise _expected("base64", where) from None


def _parsed(parse: Callable[[str], Any], what: str) -> Converter:
    def convert(value: Any, where: Where) -> Any:
        try:
            return parse(_text(value, where))
        except ValueError:
            raise _expected(what, where) from None

    return convert


_JSON: dict[Any, Converter] = {
    Any: _anything,
    object: _anything,
    None: _nothing,
    type(None): _nothing,
    str: _text,
    bool: _boolean,
    int: _whole,
    float: _number,
    bytes: _base64,
    uuid.UUID: _parsed(uuid.UUID, "a UUID"),
    datetime.datetime: _parsed(datetime.datetime.fromisoformat, "a date and time (ISO 8601)"),
    datetime.date: _parsed(datetime.date.fromisoformat, "a date (ISO 8601)"),
    dict: lambda value, where: _object(value, where),
    list: lambda value, where: _array(value, where),
}
_TEXT: dict[Any, Converter] = {bool: _boolean_text, int: _whole_text, float: _number_text}


def _plain(annotation: Any, *, text: bool) -> Converter | None:
    try:
        found = (_TEXT.get(annotation) if text else None) or _JSON.get(annotation)
    except TypeError:  # not hashable
        return None
    if found is not None:
        return found
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _enum(annotation, text=text)
    if isinstance(annotation, typing.NewType):
        return form_of(annotation.__supertype__, text=text).convert
    return None


def _object(value: Any, where: Where) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _expected("an object", where)
    return value


def _array(value: Any, where: Where) -> list[Any]:
    if not isinstance(value, list):
        raise _expected("an array", where)
    return value


def _enum(kind: type[enum.Enum], *, text: bool) -> Converter:
    return _one_of({member.value: member for member in kind}, text=text)


def _one_of(known: Mapping[Any, Any], *, text: bool) -> Converter:
    by_text = {str(value): result for value, result in known.items()}

    def convert(value: Any, where: Where) -> Any:
        for candidate, result in known.items():
            if type(candidate) is type(value) and candidate == value:
                return result
        if text and value in by_text:
            return by_text[value]
        raise _expected("one of " + ", ".join(repr(candidate) for candidate in known), where)

    return convert


# --- generic types ---------------------------------------------------------------------------------------

_ARRAYS = {list: list, Sequence: list, Iterable: list, set: set, frozenset: frozenset}
_MAPPINGS = {dict, Mapping}


def _generic(annotation: Any, *, text: bool) -> Converter | None:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return form_of(arguments[0], text=text).convert
    if origin is Literal:
        return _one_of({value: value for value in arguments}, text=text)
    if origin in (typing.Union, types.UnionType):
        return _union([form_of(argument, text=text).convert for argument in arguments], annotation)
    if origin in _ARRAYS:
        return _items(_ARRAYS[origin], form_of(arguments[0], text=text).convert)
    if origin is tuple:
        return _tuple(arguments, text=text)
    if origin in _MAPPINGS and arguments[0] is str:
        return _values(form_of(arguments[1], text=text).convert)
    return None


def _union(converters: list[Converter], annotation: Any) -> Converter:
    def convert(value: Any, where: Where) -> Any:
        deepest: Invalid | None = None
        for converter in converters:
            try:
                return converter(value, where)
            except Invalid as error:
                # What failed furthest inside is what was meant.
                if deepest is None or len(error.problems[0][0]) > len(deepest.problems[0][0]):
                    deepest = error
        if deepest is not None and len(deepest.problems[0][0]) > len(where):
            raise deepest
        raise _expected(_name(annotation), where)

    return convert


def _items(make: Callable[[list[Any]], Any], item: Converter) -> Converter:
    def convert(value: Any, where: Where) -> Any:
        values = _array(value, where)
        return make(_collect([(index, item, entry) for index, entry in enumerate(values)], where))

    return convert


def _tuple(arguments: tuple[Any, ...], *, text: bool) -> Converter:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return _items(tuple, form_of(arguments[0], text=text).convert)
    converters = [form_of(argument, text=text).convert for argument in arguments]

    def convert(value: Any, where: Where) -> Any:
        values = _array(value, where)
        if len(values) != len(converters):
            raise _expected(f"{len(converters)} items", where)
        steps = [(index, *pair) for index, pair in enumerate(zip(converters, values, strict=True))]
        return tuple(_collect(steps, where))

    return convert


def _values(item: Converter) -> Converter:
    def convert(value: Any, where: Where) -> Any:
        members = _object(value, where)
        found = _collect([(name, item, entry) for name, entry in members.items()], where)
        return dict(zip(members, found, strict=True))

    return convert


def _collect(steps: Iterable[tuple[str | int, Converter, Any]], where: Where) -> list[Any]:
    """Convert everything, and raise all problems at once."""
    values: list[Any] = []
    problems: list[Problem] = []
    for key, convert, value in steps:
        try:
            values.append(convert(value, (*where, key)))
        except Invalid as error:
            problems += error.problems
    if problems:
        raise Invalid(problems)
    return values


# --- objects with named members --------------------------------------------------------------------------

Member = tuple[str, Converter, bool]


def _dataclass_members(annotation: Any) -> list[Member]:
    hints = typing.get_type_hints(annotation, include_extras=True)
    return [
        (
            field.name,
            form_of(hints[field.name]).convert,
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(annotation)
        if field.init
    ]


def _typeddict_members(annotation: Any) -> list[Member]:
    hints = typing.get_type_hints(annotation)
    required = annotation.__required_keys__
    return [(name, form_of(hint).convert, name in required) for name, hint in hints.items()]


def _members(make: Callable[..., Any], members: list[Member]) -> Converter:
    def convert(value: Any, where: Where) -> Any:
        given = _object(value, where)
        missing: list[Problem] = [
            ((*where, name), "missing") for name, _, required in members if required and name not in given
        ]
        present = [(name, converter, given[name]) for name, converter, _ in members if name in given]
        try:
            found = _collect(present, where)
        except Invalid as error:
            raise Invalid([*missing, *error.problems]) from None
        if missing:
            raise Invalid(missing)
        try:
            return make(**{name: item for (name, _, _), item in zip(present, found, strict=True)})
        except ValueError as error:  # a dataclass that checks itself in __post_init__
            raise Invalid([(where, str(error))]) from None

    return convert


def _name(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")
