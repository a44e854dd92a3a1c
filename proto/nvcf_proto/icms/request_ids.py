"""[ext] Ids of instance requests: from one follows what it was for, should its record be lost. Pure.

Agents report the ids of request and instance and nothing else (protocol.md, section 6.6). An id is a UUID8
(RFC 9562, section 5.8): 60 random bits, then the beginnings of two digests over these and what it is for.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from os import urandom

_VERSION = 8
_RANDOM = 8
_OF_VERSION = slice(8, 13)
_OF_SPECIFICATION = slice(13, 16)


def new_request_id(version_id: str, specification_id: str) -> str:
    """Return a new id for an instance of a version's specification."""
    found = bytearray(urandom(_RANDOM))
    found[6] = _VERSION << 4 | found[6] & 0x0F
    start = bytes(found)
    mark = _of_version(start, version_id) + _of_specification(start, version_id, specification_id)
    return str(uuid.UUID(bytes=start + mark))


def version_of(request_id: str, version_ids: Iterable[str]) -> str | None:
    """Return the version that a request was for; None if it is none of these, or the id has another form."""
    found = _parsed(request_id)
    if found is None:
        return None
    start, mark = found[:_RANDOM], found[_OF_VERSION]
    return next((each for each in version_ids if _of_version(start, each) == mark), None)


def specification_of(request_id: str, version_id: str, specification_ids: Iterable[str]) -> str | None:
    """Return the specification of the version that a request was for, None if it is none of these."""
    found = _parsed(request_id)
    if found is None:
        return None
    start, mark = found[:_RANDOM], found[_OF_SPECIFICATION]
    known = (each for each in specification_ids if _of_specification(start, version_id, each) == mark)
    return next(known, None)


def _parsed(request_id: str) -> bytes | None:
    try:
        found = uuid.UUID(request_id)
    except ValueError:
        return None
    return found.bytes if found.version == _VERSION else None


def _of_version(start: bytes, version_id: str) -> bytes:
    digest = bytearray(hashlib.sha256(start + version_id.encode()).digest()[:5])
    # The variant of all UUIDs.
    digest[0] = 0x80 | digest[0] & 0x3F
    return bytes(digest)


def _of_specification(start: bytes, version_id: str, specification_id: str) -> bytes:
    return hashlib.sha256(start + f"{version_id}/{specification_id}".encode()).digest()[:3]
