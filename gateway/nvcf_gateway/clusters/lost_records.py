"""Makes the record of an instance anew from its agent's report (protocol.md, section 6.6).

The broker may have lost its records, or they were restored from an older backup. Instances that serve are not
ended for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto

from nvcf_gateway.clusters.call_rates import CallRates
from nvcf_gateway.clusters.creation import NO_GPU, instance_type_of
from nvcf_gateway.errors import StoreUnavailable
from nvcf_gateway.registry import Registry
from nvcf_proto.compute import RegisteredCluster
from nvcf_proto.icms.reports import ProcessDetails
from nvcf_proto.icms.request_ids import specification_of, version_of
from nvcf_proto.models import DeploymentSpecification, Instance, InstanceState
from nvcf_proto.models.deployments import gpu_specification_ids, specifications_of

SPARE = 16
MOST_RECORDS = 4096
"""Of one cluster, however many devices its agent has registered."""
LOOKED_UP_A_SECOND, LOOKED_UP_AT_ONCE = 50.0, 500.0


class NoRecord(Enum):
    """Why there is no record of a request."""

    CLOSED = auto()
    """It is known that the request ended, its version was deleted, or the cluster may not run it."""
    UNKNOWN = auto()
    """Nothing is known of it. That is no reason to end anything."""


class LostRecords:
    """Finds out what a request was for, of which there is no record."""

    def __init__(self, registry: Registry, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._clock = clock
        self._looked_up = CallRates(LOOKED_UP_A_SECOND, LOOKED_UP_AT_ONCE)

    async def find(
        self, request_id: str, instance_id: str, cluster_id: str, details: ProcessDetails | None
    ) -> Instance | NoRecord:
        """Return the record, as it was before the first report, or why there is none.

        Raises BrokerError and StoreUnavailable.
        """
        registry = self._registry
        if self._looked_up.wait(cluster_id):
            # Each needs a look through all versions. The agent reports again.
            raise StoreUnavailable("too many instances of this cluster have no record, try again")
        if await registry.instances.was_deleted(f"*.{request_id}"):
            return NoRecord.CLOSED
        version_id = None if details is None else details.function_version_id
        if version_id is None:
            version_id = await asyncio.to_thread(version_of, request_id, registry.versions.keys())
        if version_id is None:
            return NoRecord.UNKNOWN
        version, cluster = registry.versions.get(version_id), registry.registered_clusters.get(cluster_id)
        if version is None:
            return NoRecord.CLOSED if await registry.versions.was_deleted(version_id) else NoRecord.UNKNOWN
        if cluster is None or not cluster.serves(version.nca_id):
            return NoRecord.CLOSED
        if not self._has_room(cluster):
            return NoRecord.UNKNOWN
        name, spec = self._specification(request_id, version_id, details)
        now = self._clock()
        ready_at = None if details is None else details.ready_at
        return Instance(
            id=instance_id,
            function_id=version.function_id,
            version_id=version_id,
            cluster_id=cluster_id,
            state=InstanceState.PENDING,
            updated_at=now,
            # Nobody knows any more. An old instance must not count as the newest, which ends first.
            created_at=now if ready_at is None else min(now, ready_at),
            specification_id=name,
            gpu=None if spec is None else spec.gpu,
            request_id=request_id,
            devices=1 if spec is None else _devices(cluster, spec),
        )

    def _specification(
        self, request_id: str, version_id: str, details: ProcessDetails | None
    ) -> tuple[str | None, DeploymentSpecification | None]:
        """Return the specification with its id. Without one, the instance is replaced and then ended."""
        deployment = self._registry.deployments.get(version_id)
        if deployment is None:
            return None, None
        known = specifications_of(deployment)
        found = specification_of(request_id, version_id, known)
        if found is None and details is not None and details.gpu_specification_id is not None:
            public = gpu_specification_ids(deployment)
            found = next((key for key in known if public[key] == details.gpu_specification_id), None)
        return found, None if found is None else known[found]

    def _has_room(self, cluster: RegisteredCluster) -> bool:
        """Return whether the cluster can have more records: its agent must not fill the store.

        Those of ended instances count as long as they are there, for an agent could end what it made up.
        """
        there = sum(each.cluster_id == cluster.id for each in self._registry.instances.values())
        return there < min(MOST_RECORDS, SPARE + 2 * sum(each.devices for each in cluster.gpus))


def _devices(cluster: RegisteredCluster, spec: DeploymentSpecification) -> int:
    """Return how many GPUs, or CPU slots, an instance takes."""
    if spec.gpu == NO_GPU:
        return 1
    return max(1, instance_type_of(cluster, spec).gpu_count or spec.gpus_per_instance)
