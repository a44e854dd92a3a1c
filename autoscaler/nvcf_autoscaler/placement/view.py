"""Records of instances and clusters, prepared for policy and placement. Pure; times are Unix seconds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nvcf_autoscaler.placement.nodes import guaranteed_room
from nvcf_autoscaler.placement.place import Capacity, Cluster, Placed, Requirement
from nvcf_autoscaler.placement.usage import NO_USAGE, OVER, Usages
from nvcf_autoscaler.policy.observation import SpecificationObservation
from nvcf_proto.models import DeploymentSpecification, Instance, InstanceState

CPU = "CPU"
RECENT_STARTUPS = 8
# Tolerated difference between the clocks of a cluster and of this process.
CLOCKS_DIFFER = 10.0
LONGEST_SILENCE = 750.0
"""After this, an agent of any make has sent a heartbeat."""


@dataclass(frozen=True)
class InstanceGroups:
    """A version's instances, grouped by what they count for.

    `current`: by specification id. `stale`: of a specification or in a cluster that the deployment no longer
    has, or in a cluster that is drained (`drained`, by id). `lost`: in a cluster that is gone or was silent
    too long. `ending`: draining or terminating.
    """

    current: dict[str, tuple[Instance, ...]]
    stale: tuple[Instance, ...]
    lost: tuple[Instance, ...]
    ending: tuple[Instance, ...]
    drained: frozenset[str] = frozenset()

    @property
    def up(self) -> tuple[Instance, ...]:
        """All instances that count as capacity of the present deployment."""
        return tuple(instance for group in self.current.values() for instance in group)

    def running(self, specification_id: str) -> int:
        """Return the number of running instances of one specification."""
        return sum(each.state is InstanceState.RUNNING for each in self.current[specification_id])


def group_instances(
    now: float,
    instances: Iterable[Instance],
    requirements: Mapping[str, Requirement],
    clusters: Sequence[Cluster],
    listened: float = math.inf,
    is_deleted: Callable[[str], bool] = lambda _: True,
) -> InstanceGroups:
    """Group a version's instance records. `requirements` are by specification id, in preferred order.

    `listened` is for how many seconds this process could hear clusters. Silence that began before means
    nothing. `is_deleted` says of a cluster without a record whether it was deleted; if not, the record may
    be lost, and its instances are in no group until its agent has had the time for a heartbeat.
    """
    by_id = {cluster.id: cluster for cluster in clusters}
    heard = {each.id for each in clusters if min(now - each.heard_at, listened) <= each.timings.lost_after}
    drained = frozenset(each.id for each in clusters if each.draining)
    current: dict[str, list[Instance]] = {specification_id: [] for specification_id in requirements}
    stale: list[Instance] = []
    lost: list[Instance] = []
    ending: list[Instance] = []
    for instance in instances:
        if instance.state in OVER:
            continue
        requirement = requirements.get(instance.specification_id or "")
        unknown = instance.cluster_id not in by_id and not is_deleted(instance.cluster_id)
        if unknown and listened <= LONGEST_SILENCE:
            continue
        if instance.cluster_id not in heard:
            lost.append(instance)
        elif instance.draining_since is not None or instance.state is InstanceState.TERMINATING:
            ending.append(instance)
        elif (
            requirement is None
            or instance.cluster_id in drained
            or not requirement.permits(by_id[instance.cluster_id])
        ):
            stale.append(instance)
        else:
            current[instance.specification_id or ""].append(instance)
    groups = {key: tuple(group) for key, group in current.items()}
    return InstanceGroups(groups, tuple(stale), tuple(lost), tuple(ending), drained)


def placed(instance: Instance) -> Placed:
    """Return an instance as placement sees it."""
    return Placed(
        id=instance.key,
        cluster_id=instance.cluster_id,
        created_at=instance.created_at,
        ready=instance.state is InstanceState.RUNNING,
    )


def specification_seen(
    specification_id: str, instances: Sequence[Instance], available: int | None
) -> SpecificationObservation:
    """Return the policy's observation of one specification's instances."""
    starting = sorted(each.created_at for each in instances if each.state is not InstanceState.RUNNING)
    return SpecificationObservation(
        id=specification_id,
        running=sum(each.state is InstanceState.RUNNING for each in instances),
        starting=tuple(starting),
        available=available,
    )


def startups(known: Mapping[str, float], instances: Iterable[Instance]) -> dict[str, float]:
    """Return the last start-up times by the instances' keys, newest last.

    `known` are earlier ones, whose records may be gone. Restarted instances are left out, since their
    start-up began before the restart, and records made anew, which do not know when it began.
    """
    # Only the newest records: older ones were known once, and would push newer times out again.
    newest = list(measured_startups(instances).items())[-RECENT_STARTUPS:]
    return dict([*known.items(), *(each for each in newest if each[0] not in known)][-RECENT_STARTUPS:])


def measured_startups(instances: Iterable[Instance]) -> dict[str, float]:
    """Return the seconds from creation to ready by the instances' keys, first ready first."""
    ready = [each for each in instances if each.created_at < (each.ready_at or 0.0) and not each.restarts]
    ready.sort(key=lambda each: (each.ready_at or 0.0, each.key))
    return {each.key: max(0.0, (each.ready_at or 0.0) - each.created_at) for each in ready}


def by_cluster(instances: Iterable[Instance]) -> dict[str, int]:
    """Return the number of instances by cluster."""
    return dict(Counter(each.cluster_id for each in instances))


def devices_of(spec: DeploymentSpecification, clusters: Iterable[Cluster] = ()) -> int:
    """Return what one instance takes of any of these clusters at most: its GPUs, or one CPU slot.

    The instance type of a cluster says it. Where it does not, the deployment does.
    """
    if spec.gpu == CPU:
        return 1
    kind = (spec.gpu, spec.instance_type)
    pools = (one for each in clusters for one in each.capacity if (one.gpu, one.instance_type) == kind)
    return max(1, max((one.gpus_per_instance for one in pools), default=0) or spec.gpus_per_instance)


def clusters_for(
    spec: DeploymentSpecification,
    clusters: Iterable[Cluster],
    usages: Usages,
    avoided: Iterable[str] = (),
    most: Mapping[str, int] | None = None,
) -> tuple[Cluster, ...]:
    """Return the clusters with the instances of one specification that fit for certain.

    `most` bounds the instances in each cluster, if given.
    """
    avoid = set(avoided)
    seen = []
    for cluster in clusters:
        kinds = {}
        for one in cluster.capacity:
            # Other kinds stay listed: a refusal names what the cluster has.
            free = 0
            if (one.gpu, one.instance_type) == (spec.gpu, spec.instance_type) and cluster.id not in avoid:
                free = _room(spec, cluster, one, usages)
                free = free if most is None else min(free, max(0, most.get(cluster.id, 0)))
            kinds[one.gpu, one.instance_type] = replace(one, free=free)
        seen.append(replace(cluster, capacity=tuple(kinds.values())))
    return tuple(seen)


def _room(spec: DeploymentSpecification, cluster: Cluster, pool: Capacity, usages: Usages) -> int:
    usage = usages.get((cluster.id, spec.gpu), NO_USAGE)
    others = max(0, pool.total - pool.free - usage.reported)
    return guaranteed_room(
        devices_of(spec, [cluster]),
        usage.sizes,
        others,
        total=pool.total,
        node_gpus=pool.node_gpus,
        nodes=pool.nodes,
    )


def ahead_by(heard_at: float, heartbeat_at: float) -> float:
    """Return by how much this process' clock is ahead of the gateways' that wrote a heartbeat.

    The times are those of one heartbeat by each clock. A small difference may be its way here, and is 0.
    """
    difference = heard_at - heartbeat_at
    return difference if abs(difference) > CLOCKS_DIFFER else 0.0


def by_own_clock(instance: Instance, ahead: float) -> Instance:
    """Return a record with the times that gateways wrote by the clock of this process, which is `ahead`."""
    if not ahead:
        return instance
    written = ("acknowledged_at", "reported_at", "ready_at", "released_at")
    moments = {name: at for name in written if (at := getattr(instance, name)) is not None}
    if instance.updated_at in moments.values():
        moments["updated_at"] = instance.updated_at
    return instance.replace(**{name: at + ahead for name, at in moments.items()})


def first_heard(now: float, heartbeat_at: float) -> float:
    """Return when a cluster whose record already existed was last heard; an old record is no sign of life."""
    return now if now - heartbeat_at <= CLOCKS_DIFFER else min(now, heartbeat_at)
