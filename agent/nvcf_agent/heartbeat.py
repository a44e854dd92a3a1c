"""The cluster's record, written every HEARTBEAT_SECONDS and whenever its free capacity has changed."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import nats.errors
from nats.aio.client import Client

from nvcf_broker.bucket import Bucket
from nvcf_broker.connection import describe_error
from nvcf_broker.errors import BrokerError
from nvcf_broker.requests import raise_if_cancelled
from nvcf_proto.compute import CLUSTERS_BUCKET, HEARTBEAT_SECONDS, Cluster, GpuPool

_log = logging.getLogger(__name__)


@dataclass
class Heartbeat:
    """Writes the cluster's record. `changed` requests a beat at once."""

    client: Client
    cluster: Cluster
    pools: Callable[[], tuple[GpuPool, ...]]
    wall: Callable[[], float]
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _failing: bool = False

    async def ensure(self) -> None:
        """Make the bucket if it is missing, and beat for the first time. Raises errors of `nats`."""
        await Bucket(self.client, CLUSTERS_BUCKET).ensure()
        await self.beat()

    async def beat(self, *, draining: bool = False) -> None:
        """Write the record once. An unavailable broker is logged once."""
        record = self.cluster.replace(heartbeat_at=self.wall(), pools=self.pools(), draining=draining)
        try:
            await Bucket(self.client, CLUSTERS_BUCKET).put(self.cluster.id, record.to_json())
        except (BrokerError, nats.errors.Error, OSError) as error:
            if not self._failing:
                _log.warning("cannot write the cluster's record: %s", describe_error(error))
            self._failing = True
        else:
            self._failing = False
        raise_if_cancelled()

    async def run(self) -> None:
        """Beat until cancelled."""
        reported: tuple[GpuPool, ...] | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    while self.pools() == reported:
                        self.changed.clear()
                        await self.changed.wait()
            reported = self.pools()
            await self.beat()
