"""The limits that hold for a call: pure functions of the version's policy and the caller."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated

import msgspec

from nvcf_proto.models import RateLimit

_SECONDS = {"S": 1, "M": 60, "H": 3600, "D": 86400}
_NAMES = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}


@dataclass(frozen=True)
class Rate:
    """At most `calls` within any `seconds`."""

    calls: int
    seconds: int


class Limit(msgspec.Struct, frozen=True, array_like=True):
    """One limit of a call: at most `calls` of `key` within any `seconds`.

    The key does not contain the number of calls: when the number is changed, what was used stays used.
    """

    name: str
    key: str
    calls: int
    seconds: Annotated[int, msgspec.Meta(ge=1)]


@functools.lru_cache(maxsize=4096)
def parse_rates(text: str) -> tuple[Rate, ...]:
    """Parse rates like `5-S,300-H`; of two with the same window the stricter one holds. Raises ValueError."""
    strictest: dict[int, int] = {}
    for part in text.split(","):
        calls, _, unit = part.partition("-")
        seconds = _SECONDS.get(unit)
        if seconds is None or not calls.isdecimal():
            raise ValueError(f"{part!r} is not a rate: write N-S, N-M, N-H or N-D")
        strictest[seconds] = min(int(calls), strictest.get(seconds, int(calls)))
    return tuple(Rate(calls, seconds) for seconds, calls in sorted(strictest.items()))


@functools.lru_cache(maxsize=16384)
def limits_of(policy: RateLimit, version_id: str, nca_id: str, subject: str) -> tuple[Limit, ...]:
    """Return all limits of a call by `subject` of account `nca_id`; empty = unlimited.

    An account's own rate replaces the general rate. The general rate does not hold for excluded accounts. The
    rate per user holds in addition, for every known user (protocol.md, section 1.5).
    """
    limits: list[Limit] = []
    account = _account_rate(policy, nca_id)
    if account is not None:
        limits += _limits("account", account, f"{version_id} {nca_id}")
    if policy.user_rate is not None and subject:
        limits += _limits("user", policy.user_rate, f"{version_id} {nca_id} {subject}")
    return tuple(limits)


def _account_rate(policy: RateLimit, nca_id: str) -> str | None:
    for own in policy.account_rates:
        if own.nca_id == nca_id:
            return own.rate
    return None if nca_id in policy.excluded else policy.rate


def _limits(tier: str, text: str, key: str) -> list[Limit]:
    return [
        Limit(f"{tier}-{_NAMES[rate.seconds]}", f"{tier} {key} {rate.seconds}", rate.calls, rate.seconds)
        for rate in parse_rates(text)
    ]
