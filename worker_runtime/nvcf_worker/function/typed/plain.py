"""JSON of results: of the standard library's types, pydantic, msgspec, numpy and torch where imported."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import math
import os
import sys
import uuid
from collections.abc import Mapping, Sequence, Set, ValuesView
from typing import Any

Place = tuple[object, ...]

_ARRAYS = (Set, Sequence, ValuesView, collections.deque)
_TEXTS = (uuid.UUID, decimal.Decimal, ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network,
          ipaddress.IPv6Network)  # fmt: skip
_LONGEST_NUMBER = 14_000
"""Bits of the longest integer: Python writes no longer ones (4300 digits)."""


def to_json(value: Any) -> bytes:
    """Return a value as JSON. Raises TypeError or ValueError, which name the place of what has no form."""
    try:
        text = _encode(value)
    except (TypeError, ValueError, RecursionError):
        # Keys that are no texts, NaN in a model, or no JSON at all: this is slower, and knows the place.
        try:
            text = _encode(_plain(value, ()))
        except RecursionError:
            raise ValueError("the result is nested too deeply, or contains itself") from None
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair stays the escape that it is in JSON.
        return text.encode(errors="backslashreplace")


def plain_form(value: Any) -> Any:
    """Convert a value that the JSON encoder does not know, one level deep; the encoder does the rest.

    Raises TypeError for a value without a JSON form.
    """
    library = _from_library(value)
    if library is not None:
        return None if library is _NULL else library
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, _TEXTS):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return duration(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, _ARRAYS):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


_encode = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=plain_form
).encode


def duration(value: datetime.timedelta) -> str:
    """Return a time span in the form of ISO 8601, e.g. `P1DT2H0.5S`, as pydantic does."""
    if value < datetime.timedelta():
        return f"-{duration(-value)}"
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06d}".rstrip("0") if value.microseconds else ""
    parts = [f"{hours}H" if hours else "", f"{minutes}M" if minutes else ""]
    parts.append(f"{seconds}{fraction}S" if seconds or fraction else "")
    days, time = f"{value.days}D" if value.days else "", "".join(parts)
    return f"P{days}T{time}" if time else f"P{days or '0D'}"


def _plain(value: Any, place: Place) -> Any:
    """Convert a value completely, its keys included."""
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, int):
        if value.bit_length() > _LONGEST_NUMBER:
            raise ValueError(f"{_where(place)}: an integer of {value.bit_length()} bits has no JSON form")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{_where(place)}: {value} has no JSON form; return None or a text instead")
        return value
    if isinstance(value, dict):
        return {_key(key, place): _plain(item, (*place, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, (*place, index)) for index, item in enumerate(value)]
    try:
        found = _from_model(value) or plain_form(value)
    except TypeError as error:
        raise TypeError(f"{_where(place)}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{_where(place)}: {error}") from error
    return _plain(found, place)


def _key(key: Any, place: Place) -> Any:
    plain = key
    if not isinstance(key, str | int | float | None):
        try:
            plain = plain_form(key)
        except TypeError:
            plain = key
    if not isinstance(plain, str | int | float | None):
        raise TypeError(f"{_where(place)}: a key is {type(key).__name__}, which has no JSON form as a key")
    if isinstance(plain, float) and not math.isfinite(plain):
        raise ValueError(f"{_where(place)}: a key is {plain}, which has no JSON form")
    return plain


def _where(place: Place) -> str:
    shown = ".".join(str(part)[:40] for part in place[:20])
    return f"the result at {shown!r}" if shown else "the result"


_NULL: Any = object()


def _from_model(value: Any) -> Any:
    """Return what pydantic itself writes for a model, e.g. null for NaN; None for other values."""
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return json.loads(value.model_dump_json())
    return None


def _from_library(value: Any) -> Any:
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    msgspec: Any = sys.modules.get("msgspec")
    if msgspec is not None and isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return _from_numpy(numpy, value)
    torch: Any = sys.modules.get("torch")
    tensor: Any = getattr(torch, "Tensor", ())
    if isinstance(value, tensor):
        return value.tolist()
    return None


def _from_numpy(numpy: Any, value: Any) -> Any:
    if value.dtype.kind == "M":
        # As an integer it would lose its unit.
        found = _dates(numpy.datetime_as_string(value).tolist())
    elif value.dtype.kind == "m":
        found = value.astype("timedelta64[us]").tolist()
    else:
        found = value.tolist()
    return _NULL if found is None else found


def _dates(found: Any) -> Any:
    if isinstance(found, list):
        return [_dates(each) for each in found]
    return None if found == "NaT" else found
