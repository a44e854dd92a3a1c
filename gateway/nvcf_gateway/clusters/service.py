"""Builds the ICMS side of a gateway from its parts, and keeps the broker's side of it in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from nats.aio.client import Client

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import Requester
from nvcf_gateway.access.agent_identity import AgentAccess
from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.access.task_access import TaskAccess
from nvcf_gateway.access.worker_access import WorkerAccess
from nvcf_gateway.background import BackgroundTasks, end_task
from nvcf_gateway.clusters.admin_routes import ClusterRoutes
from nvcf_gateway.clusters.agent_routes import AgentRoutes
from nvcf_gateway.clusters.creation import WorkerAddresses
from nvcf_gateway.clusters.installation import InstallationImages
from nvcf_gateway.clusters.instances import InstanceRecords
from nvcf_gateway.clusters.keys import ClusterKeys
from nvcf_gateway.clusters.orders import Orders
from nvcf_gateway.clusters.registration import remembered
from nvcf_gateway.clusters.requeue import Requeuer
from nvcf_gateway.clusters.streams import ClusterQueues
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.routing import Route
from nvcf_gateway.management.resources import update
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.registry_logins import account_k8s_secrets
from nvcf_gateway.secrets.store import SecretStore
from nvcf_proto.models import ArtifactType

_log = logging.getLogger(__name__)

UPKEEP_SECONDS = 30.0
RETRY_SECONDS = 1.0
UNKNOWN_SECONDS = 60.0
KEEP_EVICTED_SECONDS = 24 * 3600.0
"""How long an agent of a deleted cluster is told to end everything."""


class Clusters:
    """Orders, agents and clusters of one gateway."""

    def __init__(
        self,
        registry: Registry,
        authenticator: Authenticator,
        agents: AgentAccess,
        workers: WorkerAccess,
        tasks: TaskAccess,
        secrets: SecretStore,
        client: BrokerClient,
        requests: Requester,
        queues: Client,
        background: BackgroundTasks,
        addresses: Callable[[], WorkerAddresses],
        sidecars: InstallationImages,
        replicas: int,
    ) -> None:
        self._registry = registry
        self._client = client
        self._queues = ClusterQueues(requests, replicas)
        self._instances = InstanceRecords(registry, client, Requeuer(queues))
        self._keys = ClusterKeys(registry)

        def logins(account: str) -> Awaitable[str]:
            return account_k8s_secrets(registry, secrets, account, ArtifactType.CONTAINER)

        self._agents = AgentRoutes(registry, agents, self._queues, self._instances, logins)
        self._clusters = ClusterRoutes(authenticator, registry, self._queues, self._keys)
        self._orders = Orders(registry, workers, tasks, secrets, requests, background, addresses, sidecars)
        self._reconnected = asyncio.Event()

    def admin_routes(self) -> list[Route]:
        """Return the administrator's routes."""
        return self._clusters.routes()

    def agent_routes(self) -> list[Route]:
        """Return the routes that agents call."""
        return self._agents.routes()

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
                await self._instances.tidy(time.time())
                await self._forget(time.time())
            except (BrokerError, HttpProblem) as error:
                _log.warning("the clusters' records and queues are not looked after: %s", error)
                pause = RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._reconnected.wait()

    async def _forget(self, now: float) -> None:
        """Revoke the keys of clusters that were deleted long ago; forget live records of unknown clusters.

        That a cluster was deleted is never forgotten: its id is not used again.
        """
        registered, live = self._registry.registered_clusters, self._registry.clusters
        for cluster in registered.values():
            old = cluster.evicted and now - (cluster.evicted_at or 0.0) > KEEP_EVICTED_SECONDS
            if old and remembered(cluster) != cluster:
                await self._keys.revoke(cluster.id)
                await update(registered, cluster.id, remembered)
        for seen in live.values():
            # What was registered just now at another gateway may not be known here yet.
            if now - seen.heartbeat_at > UNKNOWN_SECONDS and registered.get(seen.id) is None:
                await live.delete(seen.id)

    def _cluster_ids(self) -> list[str]:
        return [each.id for each in self._registry.registered_clusters.values() if not each.evicted]
