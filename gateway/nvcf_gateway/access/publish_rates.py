"""How much the workers of each account publish to the broker, and which of them publish too much. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from nvcf_gateway.quotas.limits import Limits, Quota

BURST_SECONDS = 10.0
"""An account may publish for so long what its limits allow; beyond, its largest publishers are ended."""


_QUOTAS = (Quota.PUBLISHED_MESSAGES, Quota.PUBLISHED_BYTES)


class Published(NamedTuple):
    """Messages and bytes, in total or in a second."""

    messages: int = 0
    size: int = 0


@dataclass
class _Sample:
    published: Published
    at: float


@dataclass
class PublishRates:
    """Takes what the broker counts for each connection.

    Connections are named by server and number, times are monotonic seconds.
    """

    limits: Limits
    _samples: dict[tuple[str, int], _Sample] = field(default_factory=dict)
    _rates: dict[str, Published] = field(default_factory=dict)
    _servers: dict[str, _Sample] = field(default_factory=dict)

    def of(self, account: str) -> Published:
        """Return what the workers of an account published in a second, lately."""
        return self._rates.get(account, Published())

    def uses(self) -> dict[Quota, Callable[[str], int]]:
        """Return what returns an account's use of each quota."""
        return {quota: functools.partial(self._use, kind) for kind, quota in enumerate(_QUOTAS)}

    def _use(self, kind: int, account: str) -> int:
        return self.of(account)[kind]

    def sample(self, seen: dict[tuple[str, int], tuple[str, Published]], now: float) -> list[tuple[str, int]]:
        """Take the counts of all connections, each with its account; return those that publish too much.

        Of an account beyond its limits, these are the connections with more than their equal share.
        """
        rates = {key: self._rate(key, published, now) for key, (_, published) in seen.items()}
        self._samples = {key: _Sample(published, now) for key, (_, published) in seen.items()}
        accounts: dict[str, list[tuple[str, int]]] = {}
        for key, (account, _) in seen.items():
            accounts.setdefault(account, []).append(key)
        self._rates = {account: _sum([rates[key] for key in keys]) for account, keys in accounts.items()}
        found: list[tuple[str, int]] = []
        for account, keys in accounts.items():
            rate = self._rates[account]
            for kind, quota in enumerate(_QUOTAS):
                limit = self.limits.of(account, quota)
                if limit is not None and rate[kind] > limit:
                    found += [key for key in keys if rates[key][kind] * len(keys) >= limit]
        return list(dict.fromkeys(found))

    def _rate(self, key: tuple[str, int], published: Published, now: float) -> Published:
        known = self._samples.get(key)
        if known is None or now <= known.at:
            # It has just connected; what it has published before counts for the time between two samples.
            return Published(*(int(count / BURST_SECONDS) for count in published))
        return _rate(known, published, now)

    def may_be_exceeded(self, received: dict[str, Published], now: float) -> bool:
        """Take what each server has received; return whether one got more than an account may publish."""
        before, self._servers = self._servers, {each: _Sample(total, now) for each, total in received.items()}
        rates = [_rate(before[each], total, now) for each, total in received.items() if each in before]
        limits = [self.limits.least(quota) for quota in _QUOTAS]
        return any(
            limit is not None and rate[kind] > limit for rate in rates for kind, limit in enumerate(limits)
        )


def _rate(known: _Sample, published: Published, now: float) -> Published:
    seconds = max(now - known.at, 1.0)
    pairs = zip(published, known.published, strict=True)
    return Published(*(int(max(0, count - before) / seconds) for count, before in pairs))


def _sum(rates: list[Published]) -> Published:
    return Published(sum(each.messages for each in rates), sum(each.size for each in rates))
