"""Messages about rate limits between gateway replicas, as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, TypeVar

import msgspec

from nvcf_gateway.errors import GatewayError
from nvcf_gateway.ratelimit.counters import Counts, Grant
from nvcf_gateway.ratelimit.policy import Limit

MAX_SLOTS_IN_MESSAGE = 20_000
MAX_CALLS = 10**9

T = TypeVar("T")


class InvalidMessage(GatewayError):
    """A message of another replica cannot be read: it comes from another release or program."""


class Acquire(msgspec.Struct):
    """Request to the owner: may `wanted` calls pass?"""

    limits: tuple[Limit, ...]
    wanted: Annotated[int, msgspec.Meta(ge=0, le=MAX_CALLS)]


class Granted(msgspec.Struct):
    """Response of the owner. `violated` is an index into the limits of the request."""

    granted: int
    violated: int | None
    after: float

    @classmethod
    def of(cls, grant: Grant, limits: tuple[Limit, ...]) -> Granted:
        """Return the message for a decision."""
        violated = None if grant.violated is None else limits.index(grant.violated)
        return cls(grant.granted, violated, grant.retry_after)

    def grant(self, limits: tuple[Limit, ...]) -> Grant:
        """Return the decision. Raises InvalidMessage."""
        try:
            return Grant(self.granted, None if self.violated is None else limits[self.violated], self.after)
        except IndexError as error:
            raise InvalidMessage(f"cannot read a rate limit message: {error}") from error


class GrantCounts(msgspec.Struct):
    """Grants of one replica, by key: length of the window, then pairs of slot and count."""

    replica: str
    counts: dict[str, tuple[int, list[tuple[int, int]]]]

    @classmethod
    def of(cls, replica: str, counts: Counts) -> GrantCounts:
        """Return the message for a replica's counts."""
        return cls(replica, {key: (seconds, list(slots.items())) for key, (seconds, slots) in counts.items()})

    def by_slot(self) -> Counts:
        """Return the counts."""
        return {key: (seconds, dict(slots)) for key, (seconds, slots) in self.counts.items()}


class Heartbeat(msgspec.Struct):
    """Replicas that are alive, or that leave now."""

    members: list[str]
    gone: bool = False


def encode(message: msgspec.Struct) -> bytes:
    """Return a message as JSON."""
    return msgspec.json.encode(message)


def decode(body: bytes, kind: type[T]) -> T:
    """Read a message. Raises InvalidMessage."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"cannot read a rate limit message: {error}") from error


def portions(parts: Iterable[Counts]) -> Iterator[Counts]:
    """Join counts of single keys into messages of a bounded size."""
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
