"""Seal secrets again after the key was rotated, and remove those whose owner is gone."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from nvcf_broker.errors import BrokerError
from nvcf_broker.kv import KvMirror
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.sealing import Unsealable
from nvcf_gateway.secrets.store import SecretStore

_log = logging.getLogger(__name__)

SWEEP_SECONDS = 10.0
# How long their owner must be missing: secrets are written before it, and it may only be read late.
ORPHAN_SECONDS = 600.0
# An owner that nobody has deleted may be lost, and come back from a backup.
LOST_OWNER_SECONDS = 30 * 24 * 3600.0


class SecretUpkeep:
    """Looks through all secrets now and then. Several gateways may do so at the same time."""

    def __init__(
        self, store: SecretStore, registry: Registry, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock
        self._broken: set[str] = set()
        self._missing: dict[str, float] = {}

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            # Replicas that started together must not sweep at the same time.
            await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
            await self.sweep()

    async def sweep(self) -> None:
        """Go once through all secrets."""
        resealed = 0
        for key in self._store.mirror.keys():  # noqa: SIM118 # a copy
            try:
                if self._is_orphan(key):
                    await self._store.mirror.delete(key)
                elif await self._store.reseal(key):
                    resealed += 1
                self._broken.discard(key)
            except Unsealable as error:
                if key not in self._broken:
                    _log.error("the secrets of %s cannot be opened: %s", key, error)
                self._broken.add(key)
            except BrokerError as error:
                _log.info("the secrets of %s are looked at again later: %s", key, error)
        for gone in (self._broken | self._missing.keys()) - set(self._store.mirror.keys()):
            self._broken.discard(gone)
            self._missing.pop(gone, None)
        if resealed:
            _log.info("sealed with the current key: the secrets of %d owners", resealed)

    def _is_orphan(self, key: str) -> bool:
        kind, _, owner_id = key.partition(".")
        owners: dict[str, KvMirror[Any]] = {
            "versions": self._registry.versions,
            "telemetries": self._registry.telemetries,
            "registries": self._registry.registries,
            "tasks": self._registry.tasks,
        }
        # A newer release may know more kinds.
        if kind not in owners or owner_id in owners[kind]:
            self._missing.pop(key, None)
            return False
        now, found = self._clock(), self._store.mirror.get(key)
        if now - self._missing.setdefault(key, now) <= ORPHAN_SECONDS or found is None:
            return False
        old = now - found.updated_at > LOST_OWNER_SECONDS
        return not found.sealed or owners[kind].is_deleted(owner_id) or old
