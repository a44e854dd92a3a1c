"""The base of all records: msgspec structs that are stored and sent as JSON objects.

Decoding is tolerant where older and newer versions meet: null means the same as a missing field, and unknown
fields are ignored unless a record forbids them. What it refuses, it refuses with `InvalidRecord`, which names
the field, what is wrong with it and what is allowed.
"""

from __future__ import annotations

import functools
import re
from typing import Annotated, Any, ClassVar, Self

import msgspec
from msgspec import Meta, inspect

from nvcf_proto.errors import InvalidRecord

_PLACE = re.compile(r" - at `\$([.\[\]\w]+)`\Z")
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")
_MEMBER = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_END = r"\Z"
_CLOSED = (inspect.EnumType, inspect.LiteralType)
_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}" + _END


def matching(pattern: str, *, max_length: int = 4096, **schema: Any) -> Meta:
    """Return the constraint of a string that matches all of `pattern`; `schema` adds to its JSON schema."""
    return Meta(pattern=f"^{pattern}{_END}", max_length=max_length, extra_json_schema=schema or None)


Text = Annotated[str, Meta(max_length=4096)]
Id = Annotated[str, Meta(pattern=_UUID, extra_json_schema={"format": "uuid"})]
"""A UUID. Upper-case digits are accepted and become lower-case ones."""
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Record(msgspec.Struct, frozen=True, rename="camel"):
    """Something stored or sent as a JSON object, with camelCase names.

    `hints` are the reasons to give for unknown fields that people try, by field name. `if_given` are JSON
    names that are written only if their value is not empty.
    """

    hints: ClassVar[dict[str, str]] = {}
    if_given: ClassVar[frozenset[str]] = frozenset()

    def to_json(self) -> bytes:
        """Return the record as compact JSON."""
        return msgspec.json.encode(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON members, without those that are None or, if they are optional, empty."""
        names = zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True)
        members = {json_name: getattr(self, name) for name, json_name in names}
        return {
            name: _plain(value)
            for name, value in members.items()
            if value is not None and (value or name not in self.if_given)
        }

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a record. Raises InvalidRecord."""
        return cls.from_dict(decode_object(body, cls.__name__))

    @classmethod
    def from_dict(cls, members: Any, path: str = "") -> Self:
        """Build a record from JSON members; `path` is where they are. Raises InvalidRecord."""
        try:
            return msgspec.convert(members, cls)
        except msgspec.ValidationError:
            pass
        members = _normalised(members, _type_of(cls))
        try:
            return msgspec.convert(members, cls)
        except msgspec.ValidationError as error:
            raise _refusal(error, cls, members, path) from None

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)


def decode_object(body: bytes, what: str = "body") -> dict[str, Any]:
    """Parse a JSON object. Raises InvalidRecord, which names `what`, for anything else."""
    try:
        value = msgspec.json.decode(body.removeprefix(b"\xef\xbb\xbf"))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRecord(what, f"not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRecord(what, f"expected a JSON object, got {_kind_of(value)}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return msgspec.to_builtins(value)


# --- what is tolerated


@functools.cache
def _type_of(cls: type[Record]) -> inspect.Type:
    return inspect.type_info(cls)


def _core(kind: inspect.Type, value: Any = None) -> inspect.Type:
    """Return the type without its metadata and without None; of several the one that `value` may be of."""
    while True:
        if isinstance(kind, inspect.Metadata):
            kind = kind.type
        elif isinstance(kind, inspect.UnionType):
            known = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
            lists = [each for each in known if isinstance(_core(each), inspect.VarTupleType)]
            kind = (lists if isinstance(value, list) and lists else known)[0]
        else:
            return kind


def _normalised(value: Any, kind: inspect.Type) -> Any:
    """Drop members that are null, and write ids in lower case."""
    kind = _core(kind, value)
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        known = {field.encode_name: field.type for field in kind.fields}
        return {
            name: _normalised(each, known[name]) if name in known else each
            for name, each in value.items()
            if each is not None or name not in known
        }
    if isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        return [_normalised(each, kind.item_type) for each in value]
    if isinstance(kind, inspect.StrType) and kind.pattern == _UUID and isinstance(value, str):
        return value.lower()
    return value


# --- what is refused


def _refusal(error: msgspec.ValidationError, cls: type[Record], members: Any, path: str) -> InvalidRecord:
    """Word msgspec's error: name the field, what is wrong with it, and what is allowed."""
    reason, place = str(error), ""
    if found := _PLACE.search(reason):
        reason, place = reason[: found.start()], found[1]
    kind, value = _core(_type_of(cls)), members
    try:
        for name, index in _STEP.findall(place):
            path, kind, value = _inside(path, kind, value, name or index)
    except (LookupError, TypeError, ValueError):
        # A name in the input that looks like the end of msgspec's message.
        return InvalidRecord(path or cls.__name__, "has an unknown field")
    cause = error.__cause__
    if isinstance(cause, InvalidRecord):
        return InvalidRecord(f"{path}.{cause.field}" if path else cause.field, cause.reason)
    member = _MEMBER.fullmatch(reason)
    if member is None or not isinstance(kind, inspect.StructType):
        return InvalidRecord(path or cls.__name__, _reason(kind, value))
    place = f"{path}.{member[2]}" if path else member[2]
    types = {field.encode_name: _core(field.type) for field in kind.fields}
    if member[1] == "missing required":
        return InvalidRecord(place, f"missing; expected {_expected(types[member[2]])}")
    unknown = f"unknown field; known are {', '.join(sorted(types))}"
    return InvalidRecord(place, getattr(kind.cls, "hints", {}).get(member[2], unknown))


def _inside(path: str, kind: inspect.Type, value: Any, step: str) -> tuple[str, inspect.Type, Any]:
    """Return the path, type and value of a part. Raises LookupError, TypeError or ValueError for none."""
    if isinstance(kind, inspect.StructType):
        types = {field.encode_name: field.type for field in kind.fields}
        return f"{path}.{step}" if path else step, _core(types[step], value[step]), value[step]
    if isinstance(kind, inspect.DictType):
        # msgspec does not name the member of a map.
        fits = functools.partial(_fits, _core(kind.value_type))
        wrong = [name for name, each in value.items() if not fits(each)]
        return f"{path}.{wrong[0]}", _core(kind.value_type), value[wrong[0]]
    if isinstance(kind, inspect.VarTupleType):
        return f"{path}[{step}]", _core(kind.item_type), value[int(step)]
    raise LookupError(step)


def _fits(kind: inspect.Type, value: Any) -> bool:
    if isinstance(kind, inspect.StrType):
        return isinstance(value, str) and (kind.pattern is None or bool(re.search(kind.pattern, value)))
    if not isinstance(value, int) or isinstance(value, bool) or not isinstance(kind, inspect.IntType):
        return False
    return (kind.ge is None or value >= kind.ge) and (kind.le is None or value <= kind.le)


def _reason(kind: inspect.Type, value: Any) -> str:
    """Say why `value` is not of the type."""
    match kind, value:
        case inspect.StrType(max_length=int(most)), str() if len(value) > most:
            return f"longer than {most} characters"
        case inspect.StrType(pattern=pattern), str():
            text = (pattern or "").removeprefix("^").removesuffix(_END)
            return "not a UUID" if pattern == _UUID else f"does not match {text}"
        case (
            (inspect.VarTupleType(max_length=int(most)) | inspect.DictType(max_length=int(most))),
            (list() | dict()),
        ) if len(value) > most:
            return f"more than {most} entries"
        case inspect.VarTupleType(item_type=item), list():
            item = _core(item)
            return "name at least one" + (f" of {_words(item)}" if isinstance(item, _CLOSED) else "")
        case ((inspect.EnumType() | inspect.LiteralType()), str()):
            return f"expected {_expected(kind)}"
        case (_, bool()):
            return f"expected {_expected(kind)}, got a boolean"
        case inspect.IntType(), int():
            return f"expected {_range(kind)}, got {value}"
        case inspect.FloatType(), (int() | float()):
            return f"expected {_range(kind)}, got {_number(value)}"
    return f"expected {_expected(kind)}, got {_kind_of(value)}"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f"{_number(kind.ge)} to {_number(kind.le)}"
    bounds = (("at least", kind.ge), ("above", kind.gt), ("at most", kind.le), ("below", kind.lt))
    given = [f"{word} {_number(bound)}" for word, bound in bounds if bound is not None]
    return " and ".join(given) or "a finite number"


def _number(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _words(kind: inspect.EnumType | inspect.LiteralType) -> str:
    values = [each.value for each in kind.cls] if isinstance(kind, inspect.EnumType) else kind.values
    return ", ".join(sorted(map(str, values)))


_NAMES: tuple[tuple[type[inspect.Type], str], ...] = (
    (inspect.StrType, "a string"),
    (inspect.IntType, "a whole number"),
    (inspect.FloatType, "a number"),
    (inspect.BoolType, "true or false"),
    (inspect.StructType, "an object"),
    (inspect.DictType, "an object of strings"),
)


def _expected(kind: inspect.Type) -> str:
    if isinstance(kind, _CLOSED):
        return f"one of {_words(kind)}"
    if isinstance(kind, inspect.VarTupleType):
        is_struct = isinstance(_core(kind.item_type), inspect.StructType)
        return "a list of objects" if is_struct else "a list of strings"
    return next((name for each, name in _NAMES if isinstance(kind, each)), "something else")


def _kind_of(value: object) -> str:
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return kinds.get(type(value), "null" if value is None else "a number")
