"""One kind of object in all regions: written in the own region, searched in all, the own first."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable

from nats.aio.client import Client

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import ObjectBucket, StoredObject
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.queue.placement import bucket_options

_log = logging.getLogger(__name__)

Found = tuple[ObjectBucket, StoredObject]


class RegionalBuckets:
    """Buckets `nvcf_KIND_REGION`, with a life of `ttl` seconds and at most `max_bytes` bytes each."""

    def __init__(
        self,
        client: Client,
        requests: ReplyInbox,
        config: GatewayConfig,
        kind: str,
        *,
        ttl: float,
        max_bytes: int = -1,
    ) -> None:
        def bucket(region: str) -> ObjectBucket:
            options = bucket_options(client, config, region)
            return ObjectBucket(requests, f"nvcf_{kind}_{region}", ttl=ttl, max_bytes=max_bytes, **options)

        self.own = bucket(config.region)
        self._others = [bucket(region) for region in config.regions if region != config.region]

    async def find(self, name: str) -> Found | None:
        """Find an object and its bucket, None if no region that can be reached has it.

        Raises BrokerError if the own region cannot be reached.
        """
        stored = await self.own.find(name)
        if stored is not None:
            return self.own, stored
        for bucket in self._others:
            try:
                stored = await bucket.find(name)
            except BrokerError as error:
                _log.warning("another region cannot be searched for an object: %s", error)
                continue
            if stored is not None:
                return bucket, stored
        return None

    async def put(self, name: str, data: AsyncIterable[bytes], headers: dict[str, str]) -> StoredObject:
        """Store an object here. Raises what `ObjectBucket.put` does."""
        return await self.own.put(name, data, headers)

    async def delete(self, name: str) -> None:
        """Delete an object in whichever region it is. Raises BrokerError."""
        found = await self.find(name)
        if found is not None:
            await found[0].delete(name)
