"""Values of telemetry that could not be sent: each is cleaned by itself, and nothing else is lost with it.

OTLP carries Unicode and integers of 64 bits, and collectors take requests of a few megabytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_TEXT = 32 * 1024
MAX_ITEMS = 1000
MAX_DEPTH = 8
_BAD = re.compile("[\0\ud800-\udfff]")
_REPLACEMENT = "\ufffd"
_INT64 = 1 << 63


def clean_text(text: str) -> str:
    """Return the text without halves of surrogate pairs and NUL, and cut to MAX_TEXT characters."""
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}... (of {len(text)} characters)"
    return _BAD.sub(_REPLACEMENT, text)


def writable(text: str) -> str:
    """Return the text with an escape for each half of a surrogate pair, so that every stream can carry it."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def clean_value(value: Any, depth: int = 0) -> Any:
    """Return a value that can be sent in place of any value."""
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else clean_text(hex(value))
    if isinstance(value, bytes):
        return value[:MAX_TEXT]
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        members = list(value.items())[:MAX_ITEMS]
        return {clean_text(shown(key)): clean_value(item, depth + 1) for key, item in members}
    if depth < MAX_DEPTH and isinstance(value, Sequence):
        return [clean_value(item, depth + 1) for item in value[:MAX_ITEMS]]
    return clean_text(shown(value))


def clean_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return attributes that can be sent."""
    return {clean_text(name): clean_value(value) for name, value in (attributes or {}).items()}


def shown(value: Any) -> str:
    """Return a value's text, also for an object that has none or fails to give it."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - the code of a user's class
        return f"<{type(value).__name__}>"
