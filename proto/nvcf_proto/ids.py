"""Ids of functions, versions, requests and instances: UUIDs as lower-case text (section 2)."""

from __future__ import annotations

import re
import uuid

from nvcf_proto.errors import InvalidId

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def new_id() -> str:
    """A fresh random id (UUID4, lower case)."""
    return str(uuid.uuid4())


def is_id(text: str) -> bool:
    """Whether `text` is a UUID in lower-case text form."""
    return _UUID.fullmatch(text) is not None


def parse_id(text: str, what: str = "id") -> str:
    """Return `text` as a lower-case UUID.

    `what` names the value in the error. Raises InvalidId for anything but the 36 character form.
    """
    lowered = text.lower()
    if not is_id(lowered):
        raise InvalidId(f"{what} is not a UUID: {text[:64]!r}")
    return lowered
