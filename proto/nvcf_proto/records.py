"""Reading JSON objects into records, with errors that name the field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar, cast

from nvcf_proto.errors import ContractError, InvalidRecord
from nvcf_proto.ids import parse_id

T = TypeVar("T")

_MISSING: Any = object()


def load_object(body: bytes, what: str = "body") -> dict[str, Any]:
    """Parse a JSON object. Raises InvalidRecord naming `what` for anything else."""
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text)
        if "\\u" in text:
            # An escape may stand for half a surrogate pair: no text that could be written again.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(what, f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRecord(what, f"expected a JSON object, got {_kind(value)}")
    return cast("dict[str, Any]", value)


def dump_object(value: dict[str, Any]) -> bytes:
    """A JSON object as compact UTF-8, fields that are None left out."""
    present = {key: item for key, item in value.items() if item is not None}
    return json.dumps(present, ensure_ascii=False, separators=(",", ":")).encode()


class Fields:
    """Typed access to the fields of one JSON object; every error names the field's full path."""

    def __init__(self, value: dict[str, Any], path: str = "") -> None:
        self._value = value
        self._path = path

    def path(self, name: str) -> str:
        """Full path of field `name`, e.g. `deploymentSpecifications[0].gpu`."""
        return f"{self._path}.{name}" if self._path else name

    def only(self, allowed: Collection[str]) -> None:
        """Raise InvalidRecord for the first field that is not in `allowed`."""
        for name in self._value:
            if name not in allowed:
                raise InvalidRecord(self.path(name), f"unknown field; known are {', '.join(sorted(allowed))}")

    def adding(self, **members: Any) -> Fields:
        """The same fields with others added, which win."""
        return Fields({**self._value, **members}, self._path)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._value.get(name) is not None

    def text(
        self,
        name: str,
        default: str = _MISSING,
        *,
        max_length: int = 4096,
        pattern: str | None = None,
        choices: Collection[str] | None = None,
    ) -> str:
        """A string field; `pattern` is matched whole."""
        value: str = self._get(name, str, "a string", default)
        if len(value) > max_length:
            raise InvalidRecord(self.path(name), f"longer than {max_length} characters")
        if choices is not None and value not in choices:
            raise InvalidRecord(self.path(name), f"expected one of {', '.join(sorted(choices))}")
        if pattern is not None and not re.fullmatch(pattern, value):
            raise InvalidRecord(self.path(name), f"does not match {pattern}")
        return value

    def optional_text(self, name: str, **rules: Any) -> str | None:
        """A string field that may be absent or null."""
        return self.text(name, **rules) if self.has(name) else None

    def id(self, name: str) -> str:
        """A UUID field."""
        try:
            return parse_id(self.text(name), name)
        except ContractError as error:
            raise (
                error if isinstance(error, InvalidRecord) else InvalidRecord(self.path(name), "not a UUID")
            ) from None

    def integer(
        self, name: str, default: int = _MISSING, *, minimum: int = 0, maximum: int = 2**31 - 1
    ) -> int:
        """A whole number between `minimum` and `maximum`, both included."""
        value: int = self._get(name, int, "a whole number", default)
        if isinstance(value, bool):
            raise InvalidRecord(self.path(name), "expected a whole number, got a boolean")
        if not minimum <= value <= maximum:
            raise InvalidRecord(self.path(name), f"expected {minimum} to {maximum}, got {value}")
        return value

    def number(self, name: str, default: float = _MISSING) -> float:
        """Any JSON number; what Python reads besides (NaN, Infinity, a number beyond all bounds) is none."""
        value = self._get(name, (int, float), "a number", default)
        if isinstance(value, bool):
            raise InvalidRecord(self.path(name), "expected a number, got a boolean")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise InvalidRecord(self.path(name), "expected a finite number")
        return number

    def boolean(self, name: str, default: bool = _MISSING) -> bool:
        """True or false."""
        return cast("bool", self._get(name, bool, "true or false", default))

    def texts(self, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A list of strings."""
        values = self._get(name, list, "a list of strings", list(default))
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise InvalidRecord(f"{self.path(name)}[{index}]", f"expected a string, got {_kind(value)}")
        return tuple(values)

    def text_map(self, name: str) -> dict[str, str]:
        """An object whose values are strings; empty when absent."""
        values = self._get(name, dict, "an object of strings", {})
        for key, value in values.items():
            if not isinstance(value, str):
                raise InvalidRecord(f"{self.path(name)}.{key}", f"expected a string, got {_kind(value)}")
        return dict(values)

    def object(self, name: str) -> Fields:
        """A nested object."""
        return Fields(self._get(name, dict, "an object", _MISSING), self.path(name))

    def objects(self, name: str, build: Callable[[Fields], T]) -> tuple[T, ...]:
        """A list of nested objects, each turned into a record by `build`."""
        built = []
        for index, value in enumerate(self._get(name, list, "a list of objects", [])):
            path = f"{self.path(name)}[{index}]"
            if not isinstance(value, dict):
                raise InvalidRecord(path, f"expected an object, got {_kind(value)}")
            built.append(build(Fields(value, path)))
        return tuple(built)

    def _get(self, name: str, kind: type | tuple[type, ...], expected: str, default: Any) -> Any:
        value = self._value.get(name)
        if value is None:
            if default is _MISSING:
                raise InvalidRecord(self.path(name), f"missing; expected {expected}")
            return default
        if not isinstance(value, kind):
            raise InvalidRecord(self.path(name), f"expected {expected}, got {_kind(value)}")
        return value


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")
