"""Cache of the platform's records: mirrors of the key-value buckets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TypeVar

from nvcf_autoscaler.controller.mapping import clusters_of
from nvcf_autoscaler.controller.orders import ORDERS_BUCKET, Order
from nvcf_autoscaler.placement.place import Cluster as PlacementCluster
from nvcf_autoscaler.placement.view import devices_of, first_heard
from nvcf_broker.connection import BrokerClient
from nvcf_broker.kv import KvMirror
from nvcf_proto.compute import CLUSTERS_BUCKET, Cluster
from nvcf_proto.models import (
    DEPLOYMENTS_BUCKET,
    INSTANCES_BUCKET,
    VERSIONS_BUCKET,
    Deployment,
    FunctionVersion,
    Instance,
    InstanceState,
    Record,
)
from nvcf_proto.models.deployments import specifications_of

R = TypeVar("R", bound=Record)


class Cache:
    """Versions, deployments, instances, clusters and orders.

    `changed(version_id)` is called when a record of a version changes, `capacity_changed()` when a cluster
    appears, disappears, or has other capacity.
    """

    def __init__(
        self,
        client: BrokerClient,
        changed: Callable[[str], None],
        capacity_changed: Callable[[], None],
        replicas: int = 1,
    ) -> None:
        self._changed = changed
        self._capacity_changed = capacity_changed
        self._heard: dict[str, tuple[float, Cluster]] = {}
        self._by_version: dict[str, dict[str, Instance]] = {}

        def version_changed(key: str, _: object) -> None:
            changed(key)

        def mirror(
            bucket: str, record: type[R], on_change: Callable[[str, R | None], None] = version_changed
        ) -> KvMirror[R]:
            return KvMirror(
                client, bucket, record.from_json, record.to_json, on_change=on_change, replicas=replicas
            )

        self.versions = mirror(VERSIONS_BUCKET, FunctionVersion)
        self.deployments = mirror(DEPLOYMENTS_BUCKET, Deployment)
        self.orders = mirror(ORDERS_BUCKET, Order)
        self.instances = mirror(INSTANCES_BUCKET, Instance, self._instance_changed)
        self.clusters = mirror(CLUSTERS_BUCKET, Cluster, self._cluster_changed)

    async def start(self, stack: AsyncExitStack) -> None:
        """Follow all buckets until `stack` is closed. Returns when each has been read once."""
        mirrors = (self.versions, self.deployments, self.instances, self.clusters, self.orders)
        for mirror in mirrors:
            await stack.enter_async_context(mirror)
        await asyncio.gather(*(mirror.ready() for mirror in mirrors))

    def version_ids(self) -> set[str]:
        """Return the versions that are deployed or still have instances."""
        return {*self.deployments.keys(), *self._by_version}

    def instances_of(self, version_id: str) -> list[Instance]:
        """Return the records of a version's instances, oldest first."""
        found = self._by_version.get(version_id, {}).values()
        return sorted(found, key=lambda each: (each.created_at, each.id))

    def placement_clusters(self) -> tuple[PlacementCluster, ...]:
        """Return all clusters, with the instants of their last heartbeats."""
        return clusters_of((record, heard_at) for heard_at, record in self._heard.values())

    def devices(self) -> dict[str, dict[str, int]]:
        """Return the total of devices, taken or free, by kind and cluster."""
        found: dict[str, dict[str, int]] = {}
        for _, record in self._heard.values():
            for pool in record.pools:
                there = found.setdefault(pool.gpu, {})
                there[record.id] = max(there.get(record.id, 0), pool.instances_total)
        return found

    def pending_devices(self) -> dict[str, int]:
        """Return how many devices each pending instance will take, by its key."""
        found = {}
        for version_id, instances in self._by_version.items():
            pending = [each for each in instances.values() if each.state is InstanceState.PENDING]
            deployment = self.deployments.get(version_id) if pending else None
            specifications = {} if deployment is None else specifications_of(deployment)
            for each in pending:
                spec = specifications.get(each.specification_id or "")
                found[each.key] = 1 if spec is None else devices_of(spec)
        return found

    def _instance_changed(self, key: str, instance: Instance | None) -> None:
        version_id, _, instance_id = key.partition(".")
        known = self._by_version.setdefault(version_id, {})
        if instance is None:
            known.pop(instance_id, None)
            if not known:
                del self._by_version[version_id]
        else:
            known[instance_id] = instance
        self._changed(version_id)

    def _cluster_changed(self, key: str, cluster: Cluster | None) -> None:
        before = self._heard.get(key)
        if cluster is None:
            self._heard.pop(key, None)
            self._capacity_changed()
            return
        now = time.time()
        if before is None:
            self._heard[key] = (first_heard(now, cluster.heartbeat_at), cluster)
        elif cluster.heartbeat_at != before[1].heartbeat_at:
            self._heard[key] = (now, cluster)
        if before is None or (cluster.pools, cluster.draining) != (before[1].pools, before[1].draining):
            self._capacity_changed()
