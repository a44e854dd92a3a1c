"""Content of bodies: gzip and deflate are undone to a bounded length, JSON is parsed to a bounded depth."""

from __future__ import annotations

import json
import zlib
from typing import Any

from nvcf_worker.errors import BadInput, HTTPError

MAX_DECODED = 64 * 1024 * 1024
"""Longest decoded body: a few kilobytes can stand for gigabytes."""
MAX_ENCODINGS = 2
_KNOWN = frozenset(("gzip", "x-gzip", "deflate"))
_GZIP_OR_ZLIB = 47
_DEFLATE = -15


def parse_json(body: bytes) -> Any:
    """Parse a request body. Raises BadInput."""
    try:
        return json.loads(body)
    except ValueError as error:
        raise BadInput(f"the request body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadInput("the request body is nested too deeply") from None


def decoded(body: bytes, encoding: str, limit: int = MAX_DECODED) -> bytes:
    """Undo a Content-Encoding. Raises BadInput; HTTPError 413 above `limit` bytes, 415 if unknown."""
    applied = [name for part in encoding.split(",") if (name := part.strip().lower()) not in ("", "identity")]
    if len(applied) > MAX_ENCODINGS or not _KNOWN.issuperset(applied):
        detail = f"Content-Encoding {encoding[:64]!r} cannot be read here; send gzip, deflate or none"
        raise HTTPError(415, detail, headers={"Accept-Encoding": "gzip, deflate"})
    for name in reversed(applied):
        body = _inflated(body, name, limit)
    return body


def _inflated(body: bytes, name: str, limit: int) -> bytes:
    found = bytearray()
    rest = body
    window = _GZIP_OR_ZLIB
    while rest:
        inflater = zlib.decompressobj(window)
        try:
            found += inflater.decompress(rest, limit + 1 - len(found))
        except zlib.error as error:
            if name == "deflate" and window != _DEFLATE and not found:
                # Some senders leave out the zlib header.
                window = _DEFLATE
                continue
            raise BadInput(f"the body is not valid {name}: {error}") from None
        if len(found) > limit:
            raise HTTPError(413, f"the decoded body is longer than {limit} bytes")
        if not inflater.eof:
            raise BadInput(f"the body is not valid {name}: it ends too early")
        rest = inflater.unused_data
    return bytes(found)
