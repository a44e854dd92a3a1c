"""Cache of the platform's records: mirrors of the key-value buckets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import TypeVar

from nvcf_autoscaler.controller.mapping import clusters_of
from nvcf_autoscaler.controller.orders import ORDERS_BUCKET, Order
from nvcf_autoscaler.placement.place import LOST_AFTER
from nvcf_autoscaler.placement.place import Cluster as PlacementCluster
from nvcf_autoscaler.placement.timings import Timings, timings_of
from nvcf_autoscaler.placement.usage import OVER
from nvcf_autoscaler.placement.view import ahead_by, by_own_clock, first_heard
from nvcf_broker.connection import BrokerClient
from nvcf_broker.kv import KvMirror
from nvcf_proto.compute import CLUSTERS_BUCKET, HEARTBEAT_SECONDS, Cluster
from nvcf_proto.models import (
    DEPLOYMENTS_BUCKET,
    INSTANCES_BUCKET,
    TASKS_BUCKET,
    VERSIONS_BUCKET,
    Deployment,
    FunctionVersion,
    Instance,
    Record,
    Task,
)

R = TypeVar("R", bound=Record)


class Cache:
    """Versions, deployments, tasks, instances, clusters and orders.

    `changed(version_id)` is called when a record of a version changes, `capacity_changed()` when a cluster
    appears, disappears, or has other capacity, `tasks_changed()` when a task or its instance changes.
    """

    def __init__(
        self,
        client: BrokerClient,
        changed: Callable[[str], None],
        capacity_changed: Callable[[], None],
        replicas: int = 1,
        lost_after: float = LOST_AFTER,
        tasks_changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._tasks_changed = tasks_changed
        self.task_keys: set[str] = set()
        """Keys of the records of tasks' instances."""
        self._lost_after = lost_after
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
        self.tasks = mirror(TASKS_BUCKET, Task, lambda _, __: tasks_changed())

    async def start(self, stack: AsyncExitStack) -> None:
        """Follow all buckets until `stack` is closed. Returns when each has been read once."""
        mirrors = (self.versions, self.deployments, self.instances, self.clusters, self.orders, self.tasks)
        for mirror in mirrors:
            await stack.enter_async_context(mirror)
        await asyncio.gather(*(mirror.ready() for mirror in mirrors))

    def version_ids(self) -> set[str]:
        """Return the versions that are deployed or still have instances."""
        return {*self.deployments.keys(), *self._by_version}

    def instances_of(self, version_id: str) -> list[Instance]:
        """Return the records of a version's instances, oldest first."""
        found = self._by_version.get(version_id, {}).values()
        return sorted(map(self._by_own_clock, found), key=lambda each: (each.created_at, each.key))

    def all_instances(self) -> Iterator[Instance]:
        """Return the records of all instances."""
        return map(self._by_own_clock, self.instances.values())

    def _by_own_clock(self, instance: Instance) -> Instance:
        known = self._heard.get(instance.cluster_id)
        return (
            instance if known is None else by_own_clock(instance, ahead_by(known[0], known[1].heartbeat_at))
        )

    def placement_clusters(self) -> tuple[PlacementCluster, ...]:
        """Return all clusters, with the instants of their last heartbeats."""
        records = ((record, heard_at) for heard_at, record in self._heard.values())
        return clusters_of(records, self._lost_after)

    def clock_set(self, now: float) -> None:
        """Take all clusters as heard at `now`: the time of their last sign of life means nothing any more."""
        self._heard = {key: (now, record) for key, (_, record) in self._heard.items()}

    def timings(self, cluster_id: str) -> Timings:
        """Return how long each step may take in a cluster."""
        known = self._heard.get(cluster_id)
        heartbeat_seconds = HEARTBEAT_SECONDS if known is None else known[1].heartbeat_seconds
        return timings_of(heartbeat_seconds, self._lost_after)

    def cluster_label(self, cluster_id: str) -> str:
        """Return a cluster's name for people; its id when it has none or is gone."""
        known = self._heard.get(cluster_id)
        return known[1].name or cluster_id if known is not None else cluster_id

    def devices(self) -> dict[str, dict[str, int]]:
        """Return the total of devices, taken or free, by kind and cluster."""
        found: dict[str, dict[str, int]] = {}
        for _, record in self._heard.values():
            for pool in record.pools:
                there = found.setdefault(pool.gpu, {})
                there[record.id] = max(there.get(record.id, 0), pool.instances_total)
        return found

    def _instance_changed(self, key: str, instance: Instance | None) -> None:
        if key in self.task_keys or (instance is not None and instance.is_task):
            self._task_instance_changed(key, instance)
            return
        version_id, _, request_id = key.partition(".")
        known = self._by_version.setdefault(version_id, {})
        before = known.get(request_id)
        if instance is None:
            known.pop(request_id, None)
            if not known:
                del self._by_version[version_id]
        else:
            known[request_id] = instance
            if before is not None and (_ended(before), before.released_at) != (
                _ended(instance),
                instance.released_at,
            ):
                self._capacity_changed()
        self._changed(version_id)

    def _task_instance_changed(self, key: str, instance: Instance | None) -> None:
        if instance is None:
            self.task_keys.discard(key)
        else:
            self.task_keys.add(key)
        if instance is None or _ended(instance):
            self._capacity_changed()
        self._tasks_changed()

    def _cluster_changed(self, key: str, cluster: Cluster | None) -> None:
        before = self._heard.get(key)
        if cluster is None and not self.clusters.is_deleted(key):
            # The record was lost. Its next heartbeat makes it anew, and its silence counts as any other.
            return
        if cluster is None:
            self._heard.pop(key, None)
            self._capacity_changed()
            return
        now = time.time()
        if before is None:
            self._heard[key] = (first_heard(now, cluster.heartbeat_at), cluster)
        else:
            # An administrator's change is no sign of life.
            heard = cluster.heartbeat_at != before[1].heartbeat_at
            self._heard[key] = (now if heard else before[0], cluster)
        if before is None or _capacity(cluster) != _capacity(before[1]):
            self._capacity_changed()


def _ended(instance: Instance) -> bool:
    return instance.state in OVER


def _capacity(cluster: Cluster) -> tuple[object, ...]:
    return (cluster.pools, cluster.draining, cluster.cordoned, cluster.healthy, cluster.authorized_nca_ids)
