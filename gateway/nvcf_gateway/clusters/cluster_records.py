"""The records of a cluster, as registrations and heartbeats change them (protocol.md, section 6.7). Pure."""

from __future__ import annotations

from nvcf_proto.compute import Cluster, GpuPool, RegisteredCluster
from nvcf_proto.icms.reports import (
    ClusterStatus,
    Gpu,
    GpuUsage,
    Heartbeat,
    InstanceType,
    MaintenanceMode,
    Registration,
)

THEIR_HEARTBEAT_SECONDS = 300.0
"""How often an agent sends heartbeats that does not say it."""
THEIR_BACKEND = "kubernetes"
ONE_MACHINE = "process"
"""Backend whose cluster is a single node, whatever sizes its instance types have."""
OVER_SEVERAL_NODES = "MULTI"
HEALTHY = "healthy"
_MODES = {
    ClusterStatus.CORDON.value: MaintenanceMode.CORDON.value,
    ClusterStatus.CORDON_AND_DRAIN.value: MaintenanceMode.CORDON_AND_DRAIN.value,
}


def registered(cluster: RegisteredCluster, registration: Registration) -> RegisteredCluster:
    """Return the record with what the agent has registered."""
    return cluster.replace(
        gpus=registration.gpus,
        heartbeat_seconds=registration.heartbeat_seconds or THEIR_HEARTBEAT_SECONDS,
        agent_version=registration.nvca_version or cluster.agent_version,
        backend=registration.backend or THEIR_BACKEND,
        agent_attributes=registration.attributes,
    )


def with_key_set(cluster: RegisteredCluster, jwks: str) -> RegisteredCluster:
    """Return the record with the key set that the agent has put."""
    return cluster if jwks == cluster.jwks else cluster.replace(jwks=jwks, jwks_from_agent=True)


def rotated(cluster: RegisteredCluster) -> RegisteredCluster:
    """Return the record without a key set from the agent: who had the old key may have put it."""
    return cluster.replace(jwks=None, jwks_from_agent=False) if cluster.jwks_from_agent else cluster


def after_registration(
    cluster: RegisteredCluster, registration: Registration, before: Cluster | None, now: float
) -> Cluster:
    """Return the live record after a registration; what was in use `before` still is."""
    used = (
        {}
        if before is None
        else {each.gpu: each.instances_total - each.instances_free for each in before.pools}
    )
    usage = {}
    for gpu in cluster.gpus:
        total, held = gpu.devices, used.get(gpu.name, 0)
        usage[gpu.name] = GpuUsage(total, held, max(0, total - held))
    mode = _MODES.get(registration.status, MaintenanceMode.NONE.value)
    return _live(cluster, usage, mode, healthy=True, draining=False, now=now)


def after_heartbeat(cluster: RegisteredCluster, heartbeat: Heartbeat, now: float) -> Cluster:
    """Return the live record after a heartbeat."""
    return _live(
        cluster,
        heartbeat.gpu_usage,
        heartbeat.maintenance_mode,
        healthy=heartbeat.status == HEALTHY,
        draining=heartbeat.draining,
        now=now,
    )


def _live(
    cluster: RegisteredCluster,
    usage: dict[str, GpuUsage],
    mode: str,
    *,
    healthy: bool,
    draining: bool,
    now: float,
) -> Cluster:
    live = Cluster(
        id=cluster.id,
        region=cluster.region,
        heartbeat_at=now,
        pools=pools_of(cluster.gpus, usage, one_machine=cluster.backend == ONE_MACHINE),
        backend=cluster.backend,
        heartbeat_seconds=cluster.heartbeat_seconds,
        healthy=healthy,
        agent_version=cluster.agent_version,
    )
    return administered(live, cluster, mode, draining=draining)


def administered(
    live: Cluster,
    cluster: RegisteredCluster,
    mode: str = MaintenanceMode.NONE.value,
    *,
    draining: bool = False,
) -> Cluster:
    """Return the live record with what the administrator wishes; `mode` and `draining` are the agent's."""
    modes = {mode, cluster.maintenance}
    drained = MaintenanceMode.CORDON_AND_DRAIN.value in modes
    return live.replace(
        region=cluster.region,
        group=cluster.group or None,
        group_id=cluster.group_id,
        attributes=cluster.agent_attributes | cluster.attributes,
        draining=drained or draining,
        name=cluster.name,
        nca_id=cluster.nca_id,
        authorized_nca_ids=cluster.authorized_nca_ids,
        cordoned=drained or MaintenanceMode.CORDON.value in modes,
    )


def pools_of(
    gpus: tuple[Gpu, ...], usage: dict[str, GpuUsage], *, one_machine: bool = False
) -> tuple[GpuPool, ...]:
    """Return a pool for each instance type, counted in single GPUs or CPU slots.

    The pools of one GPU share its devices. The largest node has as many as the largest type that needs one
    node only; smaller ones make for more nodes than devices would fill.
    """
    pools = []
    for gpu in gpus:
        total = gpu.devices
        used = usage.get(gpu.name)
        if used is not None:
            # A heartbeat knows better than a registration, which is sent once an hour.
            total = used.capacity
        free = total if used is None else min(used.available, total)
        single = [each.gpu_count for each in gpu.instance_types if each.node_type != OVER_SEVERAL_NODES]
        node = total if one_machine else max(single, default=0)
        pools += [
            GpuPool(
                gpu=gpu.name,
                instance_type=kind.name,
                instances_total=total,
                instances_free=free,
                gpus_per_instance=kind.gpu_count,
                node_gpus=node,
                nodes=-(-total // node) if node else 0,
                attributes=node_attributes(kind),
            )
            for kind in gpu.instance_types
        ]
    return tuple(pools)


def node_attributes(kind: InstanceType) -> dict[str, str]:
    """Return what an agent says of a type's nodes, under the names of a deployment's filters."""
    said = {
        "cpuArch": kind.cpu_arch,
        "os": kind.os,
        "driverVersion": kind.driver_version,
        "storage": kind.storage,
        "systemMemory": kind.system_memory,
        "gpuMemory": kind.gpu_memory,
    }
    return {name: value for name, value in said.items() if value}
