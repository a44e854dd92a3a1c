"""Checks of single values, and combinations of them for arrays, objects and unions."""

from __future__ import annotations

import base64
import datetime
import functools
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Where = tuple[str | int, ...]
Problem = tuple[Where, str]
Converter = Callable[[Any, Where], Any]


class Invalid(Exception):
    """A value does not fit its type. `problems` are pairs of a place and what is wrong there."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


def name_of(annotation: Any) -> str:
    """Return an annotation as people write it."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def expected(what: str, where: Where) -> Invalid:
    """Return the error for a value that is not `what`."""
    return Invalid([(where, f"expected {what}")])


def anything(value: Any, where: Where) -> Any:
    """Accept any value."""
    return value


def nothing(value: Any, where: Where) -> None:
    """Accept null."""
    if value is not None:
        raise expected("null", where)


def _instance(kind: type, what: str) -> Converter:
    def convert(value: Any, where: Where) -> Any:
        if not isinstance(value, kind):
            raise expected(what, where)
        return value

    return convert


_text = _instance(str, "a text")
json_object = _instance(dict, "an object")
json_array = _instance(list, "an array")


def _boolean_text(value: Any, where: Where) -> bool:
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False,
             "off": False}  # fmt: skip
    found = known.get(str(value).strip().lower())
    if found is None:
        raise expected("true or false", where)
    return found


def _whole(value: Any, where: Where) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise expected("a whole number", where)
    return value


def _number(value: Any, where: Where) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise expected("a number", where)
    return float(value)


def _parsed(parse: Callable[[str], Any], what: str) -> Converter:
    def convert(value: Any, where: Where) -> Any:
        try:
            return parse(_text(value, where))
        except ValueError:
            raise expected(what, where) from None

    return convert


def one_of(known: Mapping[Any, Any], *, text: bool) -> Converter:
    """Return a check for one of the known values, which maps it to its result."""
    by_text = {str(value): result for value, result in known.items()}

    def convert(value: Any, where: Where) -> Any:
        for candidate, result in known.items():
            if type(candidate) is type(value) and candidate == value:
                return result
        if text and value in by_text:
            return by_text[value]
        raise expected("one of " + ", ".join(repr(candidate) for candidate in known), where)

    return convert


def union(converters: list[Converter], annotation: Any) -> Converter:
    """Return a check that accepts what any of several checks accepts."""

    def convert(value: Any, where: Where) -> Any:
        deepest: Invalid | None = None
        for converter in converters:
            try:
                return converter(value, where)
            except Invalid as error:
                # The type that fits deepest is most likely the one that the caller meant.
                if deepest is None or len(error.problems[0][0]) > len(deepest.problems[0][0]):
                    deepest = error
        if deepest is not None and len(deepest.problems[0][0]) > len(where):
            raise deepest
        raise expected(name_of(annotation), where)

    return convert


def items(make: Callable[[list[Any]], Any], item: Converter) -> Converter:
    """An array whose entries all pass one check."""

    def convert(value: Any, where: Where) -> Any:
        values = json_array(value, where)
        return make(collect([(index, item, entry) for index, entry in enumerate(values)], where))

    return convert


def values_of(item: Converter) -> Converter:
    """Return a check for an object whose members all pass one check."""

    def convert(value: Any, where: Where) -> Any:
        members = json_object(value, where)
        found = collect([(name, item, entry) for name, entry in members.items()], where)
        return dict(zip(members, found, strict=True))

    return convert


def collect(steps: Iterable[tuple[str | int, Converter, Any]], where: Where) -> list[Any]:
    """Convert all values; raise all problems at once."""
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


FROM_JSON: dict[Any, Converter] = {
    Any: anything,
    object: anything,
    None: nothing,
    type(None): nothing,
    str: _text,
    bool: _instance(bool, "true or false"),
    int: _whole,
    float: _number,
    bytes: _parsed(functools.partial(base64.b64decode, validate=True), "base64"),
    uuid.UUID: _parsed(uuid.UUID, "a UUID"),
    datetime.datetime: _parsed(datetime.datetime.fromisoformat, "a date and time (ISO 8601)"),
    datetime.date: _parsed(datetime.date.fromisoformat, "a date (ISO 8601)"),
    dict: json_object,
    list: json_array,
}
FROM_TEXT: dict[Any, Converter] = {
    bool: _boolean_text,
    int: _parsed(int, "a whole number"),
    float: _parsed(float, "a number"),
}
