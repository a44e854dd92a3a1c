"""How many answers each account has in the store, as all replicas know it without asking.

Each replica counts what it stores by account and time, and publishes its counts every few seconds. The others
follow them. A count ends with the life of what it counts, so nothing has to be read to know the sum, however
much is stored. A replica that is killed takes the counts of its last seconds with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import BrokerError
from nvcf_broker.kv import KvMirror

_log = logging.getLogger(__name__)

BUCKET = "nvcf_kept_answers"
PUBLISH_SECONDS = 2.0
SLOTS = 24
"""Parts into which the life of an answer is divided."""
OVERHEAD = 1024
"""Bytes that an answer takes besides its body, about."""


class Kept(NamedTuple):
    """Number and bytes of answers."""

    answers: int = 0
    size: int = 0


class Ledger:
    """Answers by the time when they were stored; each counts for its life, and one slot longer at most."""

    def __init__(self, slots: dict[int, Kept] | None = None) -> None:
        self._slots = slots or {}

    def add(self, slot: int, answers: int, size: int) -> None:
        """Count answers that are stored in `slot`, or with negative numbers some that are gone."""
        known = self._slots.get(slot, Kept())
        self._slots[slot] = Kept(known.answers + answers, known.size + size)

    def total(self, slot: int) -> Kept:
        """Return what lives in `slot`, and forget what does not."""
        for old in [each for each in self._slots if each < slot - SLOTS]:
            del self._slots[old]
        answers, sizes = zip(*self._slots.values(), strict=True) if self._slots else ((), ())
        return Kept(sum(answers), sum(sizes))

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps(self._slots).encode()

    @classmethod
    def decode(cls, data: bytes) -> Ledger:
        """Read it from JSON. Raises ValueError."""
        try:
            return cls({int(slot): Kept(*map(int, kept)) for slot, kept in json.loads(data).items()})
        except (AttributeError, TypeError) as error:
            raise ValueError("not a ledger of kept answers") from error


class KeptAnswers:
    """Counts of all accounts. Run `mirror` and `run`."""

    def __init__(
        self,
        client: BrokerClient,
        gateway_id: str,
        ttl: float,
        *,
        replicas: int = 1,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._id = gateway_id
        self._slot_seconds = max(ttl / SLOTS, 1.0)
        self._life = ttl + 2 * self._slot_seconds
        self._now = now
        self._own: dict[str, Ledger] = {}
        self._others: dict[str, dict[str, Ledger]] = {}
        self._changed_accounts: set[str] = set()
        self.mirror: KvMirror[Ledger] = KvMirror(
            client, BUCKET, Ledger.decode, Ledger.encode, on_change=self._changed, replicas=replicas
        )

    def _changed(self, key: str, ledger: Ledger | None) -> None:
        account, _, gateway_id = key.partition(".")
        if gateway_id == self._id:
            return
        if ledger is not None:
            self._others.setdefault(account, {})[gateway_id] = ledger
        elif account in self._others:
            self._others[account].pop(gateway_id, None)
            if not self._others[account]:
                del self._others[account]

    def _slot(self) -> int:
        return int(self._now() / self._slot_seconds)

    def add(self, account: str, size: int) -> None:
        """Count an answer with a body of `size` bytes that has been stored."""
        self._add(account, 1, size + OVERHEAD)

    def remove(self, account: str, size: int) -> None:
        """Count an answer no longer that has been removed before its time."""
        self._add(account, -1, -size - OVERHEAD)

    def add_body(self, account: str, size: int) -> None:
        """Count the stored body of a kept request; with a negative size no longer."""
        self._add(account, 0, size)

    def _add(self, account: str, answers: int, size: int) -> None:
        name = _hashed(account)
        self._own.setdefault(name, Ledger()).add(self._slot(), answers, size)
        self._changed_accounts.add(name)

    def used(self, account: str) -> Kept:
        """Return what an account has in the store."""
        name, slot = _hashed(account), self._slot()
        ledgers = list(self._others.get(name, {}).values())
        if name in self._own:
            ledgers.append(self._own[name])
        totals = [ledger.total(slot) for ledger in ledgers]
        answers, size = sum(each.answers for each in totals), sum(each.size for each in totals)
        return Kept(max(0, answers), max(0, size))

    async def run(self) -> None:
        """Publish the own counts until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(PUBLISH_SECONDS)
                await self.publish()
        finally:
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self.publish()

    async def publish(self) -> None:
        """Publish the counts that have changed; those that cannot be published are tried again."""
        changed, self._changed_accounts = self._changed_accounts, set()
        while changed:
            name = changed.pop()
            try:
                await self.mirror.put(f"{name}.{self._id}", self._own[name], life=self._life)
            except BrokerError as error:
                _log.warning("counts of kept answers not published: %s", error)
                self._changed_accounts |= changed | {name}
                return


def _hashed(account: str) -> str:
    # An account's name may hold what a key may not.
    return hashlib.sha256(account.encode()).hexdigest()[:24]
