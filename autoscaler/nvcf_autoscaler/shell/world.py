"""The platform's records as the autoscaler sees them: mirrors of the key-value buckets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from nvcf_autoscaler.placement import Cluster as PlacementCluster
from nvcf_autoscaler.shell.mapping import clusters_of
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
)


class World:
    """Versions, deployments, instances and clusters; `changed(version_id)` is called when one's changes."""

    def __init__(self, client: BrokerClient, changed: Callable[[str], None], replicas: int = 1) -> None:
        self._changed = changed
        self._heard: dict[str, float] = {}
        self._by_version: dict[str, dict[str, Instance]] = {}
        self.versions = KvMirror(
            client,
            VERSIONS_BUCKET,
            FunctionVersion.from_json,
            FunctionVersion.to_json,
            on_change=lambda key, _: changed(key),
            replicas=replicas,
        )
        self.deployments = KvMirror(
            client,
            DEPLOYMENTS_BUCKET,
            Deployment.from_json,
            Deployment.to_json,
            on_change=lambda key, _: changed(key),
            replicas=replicas,
        )
        self.instances = KvMirror(
            client,
            INSTANCES_BUCKET,
            Instance.from_json,
            Instance.to_json,
            on_change=self._instance_changed,
            replicas=replicas,
        )
        self.clusters = KvMirror(
            client,
            CLUSTERS_BUCKET,
            Cluster.from_json,
            Cluster.to_json,
            on_change=self._cluster_changed,
            replicas=replicas,
        )

    async def start(self, stack: AsyncExitStack) -> None:
        """Follow all buckets until `stack` is closed; returns when each has been read once."""
        mirrors = (self.versions, self.deployments, self.instances, self.clusters)
        for mirror in mirrors:
            await stack.enter_async_context(mirror)
        await asyncio.gather(*(mirror.ready() for mirror in mirrors))

    def version_ids(self) -> set[str]:
        """Versions that are deployed or still have instances."""
        return {*self.deployments.keys(), *self._by_version}

    def instances_of(self, version_id: str) -> list[Instance]:
        """Records of a version's instances, oldest first."""
        found = self._by_version.get(version_id, {}).values()
        return sorted(found, key=lambda each: (each.created_at, each.id))

    def placement_clusters(self) -> tuple[PlacementCluster, ...]:
        """All clusters, with the instants at which this process last heard of them."""
        now = time.time()
        return clusters_of(
            (record, self._heard.setdefault(record.id, now)) for record in self.clusters.values()
        )

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
        if cluster is None:
            self._heard.pop(key, None)
        else:
            self._heard[key] = time.time()
