"""What gateway replicas say to each other about rate limits, as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from nvcf_gateway.errors import GatewayError
from nvcf_gateway.ratelimit.book import Counts, Grant
from nvcf_gateway.ratelimit.policy import Limit

MAX_SLOTS_IN_MESSAGE = 20_000
MAX_CALLS = 10**9


class InvalidMessage(GatewayError):
    """A message of another replica cannot be read; it is of another release, or none of ours."""


def encode_take(limits: tuple[Limit, ...], wanted: int) -> bytes:
    """The question whether `wanted` calls may pass."""
    asked = [[limit.name, limit.key, limit.calls, limit.seconds] for limit in limits]
    return json.dumps({"limits": asked, "wanted": wanted}, separators=(",", ":")).encode()


def decode_take(body: bytes) -> tuple[tuple[Limit, ...], int]:
    """Raises InvalidMessage."""
    members = _object(body)
    try:
        limits = tuple(
            Limit(str(name), str(key), int(calls), int(seconds))
            for name, key, calls, seconds in members["limits"]
        )
        wanted = int(members["wanted"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidMessage(f"not a question about limits: {error}") from error
    if not 0 <= wanted <= MAX_CALLS or any(limit.seconds < 1 for limit in limits):
        raise InvalidMessage("not a question about limits: numbers out of range")
    return limits, wanted


def encode_grant(grant: Grant, limits: tuple[Limit, ...]) -> bytes:
    """The answer; the violated limit is told by its place in the question."""
    violated = None if grant.violated is None else limits.index(grant.violated)
    return json.dumps({"granted": grant.granted, "violated": violated, "after": grant.retry_after}).encode()


def decode_grant(body: bytes, limits: tuple[Limit, ...]) -> Grant:
    """Raises InvalidMessage."""
    members = _object(body)
    try:
        place = members["violated"]
        violated = None if place is None else limits[int(place)]
        return Grant(int(members["granted"]), violated, float(members["after"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InvalidMessage(f"not an answer about limits: {error}") from error


def encode_counts(replica: str, counts: Counts) -> bytes:
    """A replica's grants."""
    told = {
        key: [seconds, [[slot, count] for slot, count in slots.items()]]
        for key, (seconds, slots) in counts.items()
    }
    return json.dumps({"replica": replica, "counts": told}, separators=(",", ":")).encode()


def decode_counts(body: bytes) -> tuple[str, Counts]:
    """Raises InvalidMessage."""
    members = _object(body)
    try:
        counts = {
            str(key): (int(seconds), {int(slot): int(count) for slot, count in slots})
            for key, (seconds, slots) in members["counts"].items()
        }
        return str(members["replica"]), counts
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidMessage(f"not counts: {error}") from error


def encode_members(members: Iterable[str], *, gone: bool = False) -> bytes:
    """Signs of life (or of leaving) of replicas."""
    return json.dumps({"members": sorted(members), "gone": gone}).encode()


def decode_members(body: bytes) -> tuple[list[str], bool]:
    """Raises InvalidMessage."""
    members = _object(body)
    try:
        return [str(each) for each in members["members"]], bool(members.get("gone"))
    except (KeyError, TypeError) as error:
        raise InvalidMessage(f"not signs of life: {error}") from error


def portions(parts: Iterable[Counts]) -> Iterator[Counts]:
    """Counts of single keys gathered into messages of a bounded size."""
    gathered: Counts = {}
    size = 0
    for part in parts:
        gathered.update(part)
        size += sum(len(slots) for _, slots in part.values())
        if size >= MAX_SLOTS_IN_MESSAGE:
            yield gathered
            gathered, size = {}, 0
    if gathered:
        yield gathered


def _object(body: bytes) -> dict[str, Any]:
    try:
        members = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"not JSON: {error}") from error
    if not isinstance(members, dict):
        raise InvalidMessage("not a JSON object")
    return members
