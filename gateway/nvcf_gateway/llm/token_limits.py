"""Token limits of one account at one model: reserve before a call, settle after it. Decisions only, no I/O.

Each limit is a bucket of so many tokens that refills evenly over its time. A call reserves what it may use,
and what it did not use comes back. A call that used more than it reserved leaves a debt, which is paid before
the next call. So no more tokens are used than the buckets gave, except for the debt of calls in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

UNITS = {"S": 1, "M": 60, "H": 3600, "D": 86_400, "W": 604_800}
"""Seconds of each unit."""


class Kind(Enum):
    """Which tokens a limit counts."""

    TOTAL = "tokens"
    INPUT = "input tokens"
    OUTPUT = "output tokens"


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """So many tokens in so many seconds."""

    kind: Kind
    tokens: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a call."""

    input: int
    output: int

    def of(self, kind: Kind) -> int:
        """Return how many of them a limit of that kind counts."""
        match kind:
            case Kind.INPUT:
                return self.input
            case Kind.OUTPUT:
                return self.output
        return self.input + self.output


@dataclass(frozen=True, slots=True)
class Refused:
    """A limit has too little left: `wait` seconds until it has enough, None if it never has."""

    limit: TokenLimit
    wait: float | None


@dataclass(frozen=True, slots=True)
class Room:
    """What the tightest limit has left, and the seconds until that limit is full."""

    limit: int
    remaining: int
    reset: float


def parse_rate(kind: Kind, text: str | None) -> list[TokenLimit]:
    """Read `1000-S,5000-M`, which the record has checked."""
    parts = [part.strip().split("-") for part in (text or "").split(",") if part.strip()]
    return [TokenLimit(kind, int(count), UNITS[unit]) for count, unit in parts]


class TokenBuckets:
    """The buckets of all limits of one account at one model; times are in seconds of any one clock."""

    def __init__(self, limits: list[TokenLimit], now: float) -> None:
        self._limits = limits
        self._levels = [float(limit.tokens) for limit in limits]
        self._at = now

    def reservation(self, estimate: Tokens) -> Tokens:
        """Return what a call reserves: an input estimate counts no more than any limit has in all."""
        most = estimate.input
        for limit in self._limits:
            if limit.kind is not Kind.OUTPUT:
                most = min(most, limit.tokens - (estimate.output if limit.kind is Kind.TOTAL else 0))
        return Tokens(max(0, most), estimate.output)

    def reserve(self, tokens: Tokens, now: float) -> Refused | None:
        """Take the tokens of a call from all buckets, or from none of them."""
        self._refill(now)
        worst: Refused | None = None
        for limit, level in zip(self._limits, self._levels, strict=True):
            wanted = tokens.of(limit.kind)
            if wanted > limit.tokens:
                return Refused(limit, None)
            # A refill that is rounded down must not refuse what fits a full bucket.
            missing = wanted - level
            if missing > 1e-6:
                wait = missing * limit.seconds / limit.tokens
                if worst is None or worst.wait is None or wait > worst.wait:
                    worst = Refused(limit, wait)
        if worst is None:
            self._add(tokens, -1)
        return worst

    def settle(self, reserved: Tokens, used: Tokens, now: float) -> None:
        """Replace what a call has reserved by what it has used."""
        self._refill(now)
        self._add(reserved, 1)
        self._add(used, -1)
        self._cap()

    def room(self, now: float) -> Room:
        """Return what the tightest limit has left."""
        self._refill(now)
        shares = [level / limit.tokens for limit, level in zip(self._limits, self._levels, strict=True)]
        at = shares.index(min(shares))
        limit, level = self._limits[at], self._levels[at]
        reset = (limit.tokens - level) * limit.seconds / limit.tokens
        return Room(limit.tokens, max(0, int(level)), max(0.0, reset))

    def is_full(self, now: float) -> bool:
        """Return whether nothing would be lost with these buckets."""
        self._refill(now)
        return all(level >= limit.tokens for limit, level in zip(self._limits, self._levels, strict=True))

    def _refill(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._at = max(now, self._at)
        for index, limit in enumerate(self._limits):
            self._levels[index] += passed * limit.tokens / limit.seconds
        self._cap()

    def _add(self, tokens: Tokens, sign: int) -> None:
        for index, limit in enumerate(self._limits):
            self._levels[index] += sign * tokens.of(limit.kind)

    def _cap(self) -> None:
        for index, limit in enumerate(self._limits):
            self._levels[index] = min(float(limit.tokens), self._levels[index])
