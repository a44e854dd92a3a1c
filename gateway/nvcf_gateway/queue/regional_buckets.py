"""Object buckets of the regions, and where they live in a broker cluster (protocol.md, section 2.3)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable

from nats.aio.client import Client

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import ObjectBucket, StoredObject
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.config import GatewayConfig
from nvcf_proto.stores import Store

_log = logging.getLogger(__name__)

Found = tuple[ObjectBucket, StoredObject]


def placement_tag(client: Client, config: GatewayConfig, region: str) -> str | None:
    """Return the tag `KEY:R` of a region's brokers; None without a cluster, which has no placement."""
    clustered = bool(client._server_info.get("cluster"))
    return f"{config.placement_tag_key}:{region}" if clustered else None


class RegionalBuckets:
    """One kind of object in all regions: written in the own region, searched in all, the own first.

    The buckets are `nvcf_KIND_REGION`, with a life of `ttl` seconds and the bounds of `store`, or at most
    `max_bytes` bytes each.
    """

    def __init__(
        self,
        client: Client,
        requests: ReplyInbox,
        config: GatewayConfig,
        kind: str,
        *,
        ttl: float,
        store: Store,
        max_bytes: int | None = None,
    ) -> None:
        bounds = store.bounds(config.data_max, parts=len(config.regions))
        self.by_region = {
            region: ObjectBucket(
                requests,
                f"nvcf_{kind}_{region}",
                ttl=ttl,
                max_bytes=max_bytes or bounds["max_bytes"],
                replicas=config.replicas,
                placement_tag=placement_tag(client, config, region),
            )
            for region in config.own_region_first
        }
        self.own, *self._others = self.by_region.values()

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
