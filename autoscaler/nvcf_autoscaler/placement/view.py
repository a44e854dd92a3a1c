"""Instances and clusters of a version as policy and placement see them. Pure; times are Unix seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nvcf_autoscaler.placement.place import Capacity, Cluster, Placed, Requirement
from nvcf_autoscaler.policy.observation import SpecificationObservation
from nvcf_proto.models import DeploymentSpecification, Instance, InstanceState

UP = frozenset((InstanceState.PENDING, InstanceState.STARTING, InstanceState.RUNNING))
OVER = frozenset((InstanceState.COMPLETED, InstanceState.FAILED))
CPU = "CPU"
RECENT_STARTUPS = 8
# How far apart the clocks of a cluster and of this process may be.
CLOCKS_DIFFER = 10.0


@dataclass(frozen=True)
class Standing:
    """A version's instances, sorted by what they count for.

    `current`: by specification id. `stale`: of specifications, or in clusters, that the deployment no longer
    has. `lost`: in clusters that were silent too long, or are gone. `ending`: told to leave.
    """

    current: dict[str, tuple[Instance, ...]]
    stale: tuple[Instance, ...]
    lost: tuple[Instance, ...]
    ending: tuple[Instance, ...]

    @property
    def up(self) -> tuple[Instance, ...]:
        """All that count as capacity of the deployment as it is now."""
        return tuple(instance for group in self.current.values() for instance in group)


def standing(
    now: float,
    instances: Iterable[Instance],
    requirements: Mapping[str, Requirement],
    clusters: Sequence[Cluster],
    lost_after: float,
) -> Standing:
    """Sort a version's instance records. `requirements`: of its specifications by id, in preferred order."""
    by_id = {cluster.id: cluster for cluster in clusters}
    heard = {cluster.id for cluster in clusters if now - cluster.heard_at <= lost_after}
    current: dict[str, list[Instance]] = {specification_id: [] for specification_id in requirements}
    stale: list[Instance] = []
    lost: list[Instance] = []
    ending: list[Instance] = []
    for instance in instances:
        if instance.state in OVER:
            continue
        requirement = requirements.get(instance.specification_id or "")
        if instance.cluster_id not in heard:
            lost.append(instance)
        elif instance.draining_since is not None or instance.state is InstanceState.TERMINATING:
            ending.append(instance)
        elif requirement is None or not may_be_in(requirement, by_id[instance.cluster_id]):
            stale.append(instance)
        else:
            current[instance.specification_id or ""].append(instance)
    groups = {key: tuple(group) for key, group in current.items()}
    return Standing(groups, tuple(stale), tuple(lost), tuple(ending))


def may_be_in(requirement: Requirement, cluster: Cluster) -> bool:
    """Whether a cluster is one of those a specification names, whatever its state and capacity."""
    return (
        (not requirement.clusters or cluster.id in requirement.clusters)
        and (not requirement.regions or cluster.region in requirement.regions)
        and (not requirement.groups or cluster.group in requirement.groups)
        and requirement.attributes <= cluster.attributes
    )


def placed(instance: Instance) -> Placed:
    """An instance as placement sees it."""
    return Placed(
        id=instance.id,
        cluster_id=instance.cluster_id,
        created_at=instance.created_at,
        ready=instance.state is InstanceState.RUNNING,
    )


def specification_seen(
    specification_id: str, instances: Sequence[Instance], available: int | None
) -> SpecificationObservation:
    """Instances of one specification for the policy."""
    starting = sorted(each.created_at for each in instances if each.state is not InstanceState.RUNNING)
    return SpecificationObservation(
        id=specification_id,
        running=sum(each.state is InstanceState.RUNNING for each in instances),
        starting=tuple(starting),
        available=available,
    )


def startups(known: Mapping[str, float], instances: Iterable[Instance]) -> dict[str, float]:
    """Times from creation to ready by instance id, newest last; `known` are those from before, whose
    records may be gone. An instance that was started again tells nothing about a start from nothing.
    """
    found = dict(known)
    ready = [each for each in instances if each.ready_at is not None and not each.restarts]
    for instance in sorted(ready, key=lambda each: each.ready_at or 0.0):
        took = max(0.0, (instance.ready_at or 0.0) - instance.created_at)
        found.setdefault(instance.id, took)
    return dict(list(found.items())[-RECENT_STARTUPS:])


def by_cluster(instances: Iterable[Instance]) -> dict[str, int]:
    """How many instances each cluster has."""
    return dict(Counter(each.cluster_id for each in instances))


def devices_of(spec: DeploymentSpecification) -> int:
    """What one instance takes of a cluster's pool: its GPUs, or one slot."""
    return 1 if spec.gpu == CPU else max(1, spec.gpus_per_instance)


def unreported(
    instances: Iterable[Instance], clusters: Sequence[Cluster], pending_devices: Mapping[str, int]
) -> dict[tuple[str, str], int]:
    """Devices by cluster and GPU that a cluster's last heartbeat cannot have counted as taken yet.

    `pending_devices` is how many an instance takes whose agent has not chosen any yet, by its key.
    """
    heard = {cluster.id: cluster.heard_at for cluster in clusters}
    taken: Counter[tuple[str, str]] = Counter()
    for each in instances:
        if each.state not in UP or each.gpu is None:
            continue
        if each.state is InstanceState.PENDING or each.created_at > heard.get(each.cluster_id, 0.0):
            devices = each.visible_devices.count(",") + 1 if each.visible_devices else None
            taken[each.cluster_id, each.gpu] += devices or pending_devices.get(each.key, 1)
    return dict(taken)


def clusters_for(
    spec: DeploymentSpecification,
    clusters: Iterable[Cluster],
    taken: Mapping[tuple[str, str], int],
    avoided: Iterable[str] = (),
    most: Mapping[str, int] | None = None,
) -> tuple[Cluster, ...]:
    """Clusters with what is free in them for instances of one specification; pools count devices.

    `most` bounds the instances in each cluster, where there is such a bound.
    """
    devices = devices_of(spec)
    avoid = set(avoided)
    seen = []
    for cluster in clusters:
        free = cluster.free(spec.gpu, spec.instance_type) - taken.get((cluster.id, spec.gpu), 0)
        if cluster.id in avoid:
            free = 0
        instances = max(0, free) // devices
        if most is not None:
            instances = min(instances, max(0, most.get(cluster.id, 0)))
        capacity = Capacity(spec.gpu, spec.instance_type, instances)
        seen.append(replace(cluster, capacity=(capacity,)))
    return tuple(seen)


def silent(now: float, clusters: Iterable[Cluster], after: float) -> set[str]:
    """Clusters that were not heard of for `after` seconds: they get nothing."""
    return {cluster.id for cluster in clusters if now - cluster.heard_at > after}


def first_heard(now: float, heartbeat_at: float) -> float:
    """When a cluster was last heard whose record was found at the start: a leftover is not a sign of life."""
    return now if now - heartbeat_at <= CLOCKS_DIFFER else min(now, heartbeat_at)
