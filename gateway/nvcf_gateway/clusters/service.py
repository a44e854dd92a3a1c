"""Builds the ICMS side of a gateway from its parts, and keeps the broker's side of it in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import Requester
from nvcf_gateway.access.worker_access import WorkerAccess
from nvcf_gateway.background import BackgroundTasks, end_task
from nvcf_gateway.clusters.creation import WorkerAddresses
from nvcf_gateway.clusters.orders import Orders
from nvcf_gateway.clusters.streams import ClusterQueues
from nvcf_gateway.registry import Registry

_log = logging.getLogger(__name__)

UPKEEP_SECONDS = 30.0
RETRY_SECONDS = 1.0


class Clusters:
    """Orders, agents and clusters of one gateway."""

    def __init__(
        self,
        registry: Registry,
        workers: WorkerAccess,
        client: BrokerClient,
        requests: Requester,
        background: BackgroundTasks,
        addresses: Callable[[], WorkerAddresses],
        replicas: int,
    ) -> None:
        self._registry = registry
        self._client = client
        self._queues = ClusterQueues(requests, replicas)
        self._orders = Orders(registry, workers, requests, background, addresses)
        self._reconnected = asyncio.Event()

    async def start(self, stack: AsyncExitStack) -> None:
        """Create what is missing in the broker, and take orders. Raises SetupError."""
        await self._queues.start()
        stack.callback(self._client.on_reconnect(self._reconnected.set))
        stack.push_async_callback(end_task, asyncio.create_task(self._upkeep(), name="clusters"))
        await self._orders.start(self._client)

    async def _upkeep(self) -> None:
        """Repair streams and consumers now and then, and at once when the broker was away."""
        while True:
            self._reconnected.clear()
            pause = UPKEEP_SECONDS
            try:
                await self._queues.ensure_streams()
                await self._queues.create_all(self._cluster_ids())
            except BrokerError as error:
                _log.warning("the queues of the clusters are not looked after: %s", error)
                pause = RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._reconnected.wait()

    def _cluster_ids(self) -> list[str]:
        return [each.id for each in self._registry.registered_clusters.values() if not each.evicted]
