"""What JSON cannot say, in a form that it can: results of handlers."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import enum
import sys
import uuid
from typing import Any


def plain_form(value: Any) -> Any:
    """One level of a value that the JSON encoder does not know; it encodes the members itself.

    Pydantic models, msgspec structs, dataclasses, enumerations, UUIDs, dates, bytes (base64), numpy arrays
    and numbers. Raises TypeError for anything else.
    """
    library = _library_form(value)
    if library is not None:
        return library
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def _library_form(value: Any) -> Any:
    pydantic: Any = sys.modules.get("pydantic")
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    msgspec: Any = sys.modules.get("msgspec")
    if msgspec is not None and isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
        return value.tolist()
    return None
