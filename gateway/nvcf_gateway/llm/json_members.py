"""Find members of a JSON object without parsing the values around them.

A body is read once and every byte outside of the value that is replaced passes as it came, so values are
skipped and not decoded. What a function's own parser has to refuse in them is left to it. Names are compared
after their escapes are decoded: `"\\u006dodel"` is `model`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass

MAX_MEMBERS = 4096
MAX_NAME_BYTES = 128
"""Longest name that is compared, as written; a longer one is none of those that are looked for."""
SLICE_STEPS = 4096
"""Tokens after which a scan lets others run."""

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING_PART = re.compile(rb'[^"\\]*+(?:\\[\x00-\xff][^"\\]*+){0,4096}+')
_UNTIL_MARK = re.compile(rb'[^"\[\]{}]*+')
_SCALAR = re.compile(rb'[^\x00-\x20",:\[\]{}]++')

_Steps = Generator[None, None, int]


class InvalidBody(ValueError):
    """The body is no JSON object, or has a member twice that is looked for."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where the value of a member is: `body[start:end]`."""

    start: int
    end: int


def scan(body: bytes, wanted: Collection[str]) -> Iterator[dict[str, Span] | None]:
    """Yield None from time to time, and at the end where the values of the wanted members are.

    Raises InvalidBody.
    """
    found: dict[str, Span] = {}
    at = _space(body, _after(body, _space(body, 0), b"{"))
    more = body[at : at + 1] != b"}"
    count = 0
    while more:
        count += 1
        if count > MAX_MEMBERS:
            raise InvalidBody(f"the body has more than {MAX_MEMBERS} members")
        end = yield from _string(body, at)
        name = _name(body[at:end])
        start = _space(body, _after(body, _space(body, end), b":"))
        end = yield from _value(body, start)
        if name in wanted:
            if name in found:
                raise InvalidBody(f"the body has two members '{name}'")
            found[name] = Span(start, end)
        at = _space(body, end)
        more = body[at : at + 1] == b","
        if more:
            at = _space(body, at + 1)
    at = _space(body, _after(body, at, b"}"))
    if at != len(body):
        raise InvalidBody(f"something follows the JSON object at byte {at}")
    yield found


def members(body: bytes, wanted: Collection[str]) -> dict[str, Span]:
    """Return where the values of the wanted members are. Raises InvalidBody."""
    return next(found for found in scan(body, wanted) if found is not None)


async def members_in_slices(body: bytes, wanted: Collection[str]) -> dict[str, Span]:
    """Return the same as `members`, and let others run in between. Raises InvalidBody."""
    for found in scan(body, wanted):
        if found is not None:
            return found
        await asyncio.sleep(0)
    raise AssertionError("a scan ends with its result")


def replaced(body: bytes, changes: Mapping[Span, bytes]) -> bytes:
    """Return the body with other values at these places; all other bytes stay."""
    parts, at = [], 0
    for span in sorted(changes, key=lambda each: each.start):
        parts += [body[at : span.start], changes[span]]
        at = span.end
    return b"".join((*parts, body[at:]))


def _space(body: bytes, at: int) -> int:
    return _end(_SPACE, body, at)


def _end(pattern: re.Pattern[bytes], body: bytes, at: int) -> int:
    match = pattern.match(body, at)
    return at if match is None else match.end()


def _after(body: bytes, at: int, expected: bytes) -> int:
    if body[at : at + 1] != expected:
        raise InvalidBody(f"the body is no JSON object: '{expected.decode()}' is missing at byte {at}")
    return at + 1


def _name(quoted: bytes) -> str:
    if len(quoted) > MAX_NAME_BYTES:
        return ""
    try:
        return str(json.loads(quoted))
    except ValueError:
        raise InvalidBody("the name of a member is no JSON string") from None


def _string(body: bytes, at: int) -> _Steps:
    at = _after(body, at, b'"')
    while True:
        end = _end(_STRING_PART, body, at)
        if body[end : end + 1] == b'"':
            return end + 1
        if end == at:
            raise InvalidBody("the body ends in the middle of a string")
        at = end
        yield None


def _value(body: bytes, at: int) -> _Steps:
    first = body[at : at + 1]
    if first == b'"':
        return (yield from _string(body, at))
    if first in (b"{", b"["):
        return (yield from _container(body, at))
    end = _end(_SCALAR, body, at)
    if end == at:
        raise InvalidBody(f"a value is missing at byte {at}")
    return end


def _container(body: bytes, at: int) -> _Steps:
    depth, steps = 0, 0
    while True:
        at = _end(_UNTIL_MARK, body, at)
        mark = body[at : at + 1]
        if not mark:
            raise InvalidBody("the body ends in the middle of a value")
        if mark == b'"':
            at = yield from _string(body, at)
        else:
            depth += 1 if mark in b"{[" else -1
            at += 1
        if depth == 0:
            return at
        steps += 1
        if steps % SLICE_STEPS == 0:
            yield None
