"""What accounts use, and the refusal of what goes beyond their quotas.

Functions, versions, keys and assets are counted from records that every replica follows. Queued requests are
read from the broker every few seconds, and what this replica has queued since then is added. So with several
replicas an account may exceed the limits of its queues by what the others queue within one interval.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_broker.kv import KvMirror
from nvcf_gateway.quotas.asset_index import AssetIndex
from nvcf_gateway.quotas.kept_answers import KeptAnswers
from nvcf_gateway.quotas.limits import Limits, Quota
from nvcf_gateway.registry import Registry
from nvcf_proto.subjects import ALL_REQUEST_SUBJECTS, version_of_request_stream

_log = logging.getLogger(__name__)

SAMPLE_SECONDS = 5.0
FRESH_SECONDS = 0.5


Queued = tuple[int, int]
"""Messages and bytes."""
_NOTHING: Queued = (0, 0)


class Tally:
    """What accounts have queued: the last sample, and what was added since it was begun."""

    def __init__(self) -> None:
        self._used: dict[str, Queued] = {}
        self._during: dict[str, Queued] | None = None

    def used(self, account: str) -> Queued:
        """Return what an account uses, rather too much than too little."""
        return self._used.get(account, _NOTHING)

    def add(self, account: str, messages: int, size: int) -> None:
        """Count more requests."""
        _add(self._used, account, messages, size)
        if self._during is not None:
            _add(self._during, account, messages, size)

    def begin(self) -> None:
        """Begin a sample: what is added from now on may be in it or not."""
        self._during = {}

    def finish(self, sample: dict[str, Queued] | None) -> None:
        """Take over a sample, with what was added meanwhile; None: there is none."""
        if sample is not None:
            for account, (messages, size) in (self._during or {}).items():
                _add(sample, account, messages, size)
            self._used = sample
        self._during = None


def _add(counts: dict[str, Queued], account: str, messages: int, size: int) -> None:
    before = counts.get(account, _NOTHING)
    counts[account] = (before[0] + messages, before[1] + size)


class Usage:
    """Counts of all accounts as this replica knows them."""

    def __init__(
        self, requests: Requester, registry: Registry, limits: Limits, assets: AssetIndex, kept: KeptAnswers
    ) -> None:
        self._jetstream = JetStream(requests)
        self._registry = registry
        self._limits = limits
        self._assets = assets
        self._kept = kept
        self._tally = Tally()
        self.of_this_gateway: dict[Quota, Callable[[str], int]] = {}
        """What returns the use of an account, for quotas that each gateway counts for itself."""
        self._sampling: asyncio.Task[None] | None = None
        self._sampled_at = float("-inf")

    def require(self, account: str, quota: Quota, adding: int = 1) -> None:
        """Raise QuotaExceeded unless `adding` more fits."""
        self._limits.require(account, quota, self.used(account, quota), adding)

    def require_room_for_an_answer(self, account: str) -> None:
        """Raise QuotaExceeded unless one more answer may be kept. Its size is not known yet."""
        self.require(account, Quota.KEPT_ANSWERS)
        self.require(account, Quota.KEPT_BYTES)

    def limit(self, account: str, quota: Quota) -> int | None:
        """Return the limit of an account, None without one."""
        return self._limits.of(account, quota)

    def add_kept_body(self, account: str, size: int) -> None:
        """Count the stored body of a kept request, or with a negative size one that is gone."""
        self._kept.add_body(account, size)

    def room(self, account: str, quota: Quota) -> int:
        """Return how much more fits."""
        limit = self._limits.of(account, quota)
        return sys.maxsize if limit is None else max(0, limit - self.used(account, quota))

    async def admit(self, version_id: str, size: int) -> None:
        """Count a request that is to be queued for the account of its version. Raises QuotaExceeded.

        It waits only for an account that seems to be at its limits: then the broker is asked how many of its
        requests are queued still.
        """
        version = self._registry.versions.get(version_id)
        if version is None:
            return
        account = version.nca_id
        messages, used = self._tally.used(account)
        most = self._limits.of(account, Quota.QUEUED_REQUESTS)
        most_bytes = self._limits.of(account, Quota.QUEUED_BYTES)
        if (most is not None and messages >= most) or (most_bytes is not None and used + size > most_bytes):
            await self._fresh_sample()
            self.require(account, Quota.QUEUED_REQUESTS)
            self.require(account, Quota.QUEUED_BYTES, size)
        self._tally.add(account, 1, size)

    def used(self, account: str, quota: Quota) -> int:
        """Return how much of a quota an account uses."""
        registry = self._registry
        counted: Mapping[Quota, KvMirror[Any]] = {
            Quota.FUNCTIONS: registry.functions,
            Quota.VERSIONS: registry.versions,
            Quota.KEYS: registry.keys,
            Quota.REGISTRY_CREDENTIALS: registry.registries,
        }
        if quota in self.of_this_gateway:
            return self.of_this_gateway[quota](account)
        if quota in counted:
            return sum(each.nca_id == account for each in counted[quota].values())
        match quota:
            case Quota.SECRETS:
                return sum(len(each.sealed) for each in registry.secrets.values() if each.nca_id == account)
            case Quota.SECRET_BYTES:
                return sum(each.size for each in registry.secrets.values() if each.nca_id == account)
            case Quota.TASKS:
                return registry.task_index.count(account)
            case Quota.ASSETS:
                return self._assets.count(account)
            case Quota.ASSET_BYTES:
                return self._assets.size(account)
            case Quota.KEPT_ANSWERS:
                return self._kept.used(account).answers
            case Quota.KEPT_BYTES:
                return self._kept.used(account).size
            case Quota.QUEUED_REQUESTS:
                return self._tally.used(account)[0]
            case Quota.QUEUED_BYTES:
                return self._tally.used(account)[1]
            case _:
                return 0

    def all_of(self, account: str) -> list[dict[str, str | int | None]]:
        """Return name, use and limit of each quota of an account."""
        return [
            {"quota": each.value, "used": self.used(account, each), "limit": self._limits.of(account, each)}
            for each in Quota
        ]

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await self._fresh_sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _fresh_sample(self) -> None:
        if asyncio.get_running_loop().time() - self._sampled_at < FRESH_SECONDS:
            return
        if self._sampling is None:
            self._sampling = asyncio.create_task(self._sample(), name="sample of the queues")
            self._sampling.add_done_callback(self._sampled)
        await asyncio.shield(self._sampling)

    def _sampled(self, _task: asyncio.Task[None]) -> None:
        self._sampling = None
        self._sampled_at = asyncio.get_running_loop().time()

    async def _sample(self) -> None:
        self._tally.begin()
        found: dict[str, Queued] | None = {}
        try:
            for stream in await self._jetstream.streams(ALL_REQUEST_SUBJECTS):
                version = self._registry.versions.get(version_of_request_stream(stream.name))
                if version is not None and found is not None:
                    _add(found, version.nca_id, stream.messages, stream.size)
        except BrokerError as error:
            found = None
            _log.warning("the queues of accounts are not counted now: %s", error)
        self._tally.finish(found)
