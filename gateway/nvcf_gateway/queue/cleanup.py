"""Removal of what nobody needs any more: queues of versions that are not deployed, and dead API keys."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Literal

from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import JetStream, Requester, StreamInfo
from nvcf_gateway.registry import Registry
from nvcf_proto.models import ApiKey
from nvcf_proto.subjects import closed_stream_subject, request_subjects, version_of_request_stream

_log = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
EMPTY_SECONDS = 600.0
"""An empty queue goes when its version has not been deployed for this time."""
DROP_SECONDS = 24 * 3600.0
"""Requests go when their version has not been deployed for this time."""
DEAD_KEY_SECONDS = 24 * 3600.0
"""A revoked or expired API key is deleted after this time."""
_PREFIX = "rq_"

Verdict = Literal["keep", "if empty", "drop"]


def verdict(undeployed_for: float | None, *, known: bool) -> Verdict:
    """Decide what becomes of a queue. `undeployed_for` is None while its version is deployed.

    Requests of a version that is not `known` may be another platform's: they stay.
    """
    if undeployed_for is None or undeployed_for < EMPTY_SECONDS:
        return "keep"
    return "drop" if known and undeployed_for >= DROP_SECONDS else "if empty"


def is_dead(key: ApiKey, now: float) -> bool:
    """Decide whether a key's record can go.

    One that was not made over HTTP comes from a file of a gateway, which would create it again.
    """
    ends = [end for end in (key.revoked_at, key.expires_at) if end is not None]
    return bool(key.created_by and ends) and now - min(ends) >= DEAD_KEY_SECONDS


class Cleanup:
    """Looks through queues and keys now and then. Several gateways may do so at the same time."""

    def __init__(
        self, requests: Requester, registry: Registry, clock: Callable[[], float] = time.time
    ) -> None:
        self._jetstream = JetStream(requests)
        self._registry = registry
        self._clock = clock
        self._undeployed: dict[str, float] = {}

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            # Replicas that started together must not sweep at the same time.
            await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
            await self.sweep()

    async def sweep(self) -> None:
        """Remove once what can go."""
        try:
            streams = await self._jetstream.streams(">")
            queues = [each for each in streams if each.name.startswith(_PREFIX)]
            for gone in self._undeployed.keys() - {each.name for each in queues}:
                del self._undeployed[gone]
            for each in queues:
                await self._look_at(each)
            for key_id, key in self._registry.keys.items():
                if is_dead(key, self._clock()):
                    await self._registry.keys.delete(key_id)
        except BrokerError as error:
            _log.warning("clean-up goes on later: %s", error)

    async def _look_at(self, queue: StreamInfo) -> None:
        version_id = version_of_request_stream(queue.name)
        if queue.config["subjects"] == [closed_stream_subject(queue.name)]:
            # A gateway ended in the middle of this.
            await self._finish(queue, "if empty")
            return
        if self._registry.index.is_deployed(version_id):
            self._undeployed.pop(queue.name, None)
            return
        since = self._undeployed.setdefault(queue.name, self._clock())
        known = self._registry.versions.get(version_id) is not None
        decided = verdict(self._clock() - since, known=known)
        if decided == "drop" or (decided == "if empty" and not queue.messages):
            # From here on nothing arrives in it: what is published meanwhile is refused and tried again.
            subjects = [closed_stream_subject(queue.name)]
            await self._jetstream.update_stream({**queue.config, "subjects": subjects})
            await self._finish(queue, decided)

    async def _finish(self, queue: StreamInfo, decided: Verdict) -> None:
        """Remove a closed queue, or open it again if something has arrived or its version is deployed."""
        version_id = version_of_request_stream(queue.name)
        now = await self._jetstream.stream_info(queue.name)
        if now is None:
            return
        if (now.messages and decided != "drop") or self._registry.index.is_deployed(version_id):
            region = queue.name.removeprefix(_PREFIX).removesuffix(f"_{version_id}")
            subjects = [request_subjects(region, version_id)]
            await self._jetstream.update_stream({**now.config, "subjects": subjects})
            return
        await self._jetstream.delete_stream(queue.name)
        self._undeployed.pop(queue.name, None)
        if now.messages:
            text = "%d requests dropped: their version %s has not been deployed for %d h"
            _log.warning(text, now.messages, version_id, DROP_SECONDS / 3600)
