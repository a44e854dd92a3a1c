"""Leader election among replicas: a lease in a key-value bucket, renewed while it is held.

A replica takes the lease when its record has not changed for TTL on the replica's own clock, so clocks need
not agree. The holder stops acting well before others may take the lease: a leader that was paused finds its
lease expired before its next action.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated

from msgspec import Meta

from nvcf_broker.errors import BrokerError, KeyExistsError, RevisionConflictError
from nvcf_broker.kv import KvMirror
from nvcf_broker.requests import raise_if_cancelled
from nvcf_proto.models.record import Record, Text

_log = logging.getLogger(__name__)

TTL = 2.5
RENEW_EVERY = 0.5
SAFE_SHARE = 0.7


class LeaseRecord(Record, frozen=True):
    """The leader. `count` changes with each renewal."""

    holder: Text
    count: Annotated[int, Meta(ge=0, le=2**62)]


class ObservedLease:
    """The lease as the replica `holder` has observed it, with instants of a monotonic clock. Pure."""

    def __init__(self, holder: str) -> None:
        self._holder = holder
        self._seen_revision = -1
        self._seen_at = float("-inf")

    def may_take(self, stored: tuple[int, LeaseRecord] | None, now: float) -> bool:
        """Return whether the stored lease (revision and record) is free, held by this replica, or expired."""
        if stored is None:
            return True
        revision, record = stored
        if revision != self._seen_revision:
            self._seen_revision, self._seen_at = revision, now
        return record.holder == self._holder or now - self._seen_at >= TTL

    def wrote(self, revision: int, now: float) -> None:
        """Note that this replica has written the lease."""
        self._seen_revision, self._seen_at = revision, now


class Lease:
    """The lease `key` for the replica `holder`. `clock` is monotonic, in seconds."""

    def __init__(
        self, mirror: KvMirror[LeaseRecord], key: str, holder: str, clock: Callable[[], float]
    ) -> None:
        self._mirror = mirror
        self._key = key
        self._holder = holder
        self._clock = clock
        self._observed = ObservedLease(holder)
        self._held_until = self._since = float("-inf")

    @property
    def held_for(self) -> float:
        """Return for how many seconds this replica has led without a break; meaningless while it does not.

        It begins anew when the wall clock was set.
        """
        return self._clock() - self._since

    def begin_anew(self) -> None:
        """Count from now on for how long this replica has led."""
        self._since = self._clock()

    @property
    def held(self) -> bool:
        """Whether this replica leads."""
        return self._clock() < self._held_until

    async def keep(self, changed: Callable[[bool], None]) -> None:
        """Take and renew the lease until cancelled. `changed(held)` is called at each change."""
        before = False
        while True:
            raise_if_cancelled()
            started = self._clock()
            try:
                if await self._try(started):
                    self._since = self._since if self.held else started
                    self._held_until = started + TTL * SAFE_SHARE
            except BrokerError as error:
                _log.warning("lease not renewed: %s", error)
            if self.held is not before:
                before = self.held
                _log.info("this replica %s", "leads" if before else "does not lead any more")
                changed(before)
            await asyncio.sleep(RENEW_EVERY)

    async def release(self) -> None:
        """Release the lease, so that another replica leads at once."""
        entry = self._mirror.entry(self._key)
        self._held_until = float("-inf")
        if entry is not None and entry.value.holder == self._holder:
            try:
                await self._mirror.delete(self._key, entry.revision)
            except BrokerError as error:
                _log.info("lease not released: %s", error)

    async def _try(self, now: float) -> bool:
        entry = self._mirror.entry(self._key)
        if not self._observed.may_take(None if entry is None else (entry.revision, entry.value), now):
            return False
        try:
            if entry is None:
                revision = await self._mirror.create(self._key, LeaseRecord(self._holder, 1))
            else:
                record = LeaseRecord(self._holder, entry.value.count + 1)
                revision = await self._mirror.update(self._key, record, entry.revision)
        except (KeyExistsError, RevisionConflictError):
            return False
        self._observed.wrote(revision, self._clock())
        return True
