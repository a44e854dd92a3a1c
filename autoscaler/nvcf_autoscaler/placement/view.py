"""Records of instances and clusters, prepared for policy and placement. Pure; times are Unix seconds."""

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
# Tolerated difference between the clocks of a cluster and of this process.
CLOCKS_DIFFER = 10.0


@dataclass(frozen=True)
class InstanceGroups:
    """A version's instances, grouped by what they count for.

    `current`: by specification id. `stale`: of a specification or in a cluster that the deployment no longer
    has. `lost`: in a cluster that is gone or was silent too long. `ending`: draining or terminating.
    """

    current: dict[str, tuple[Instance, ...]]
    stale: tuple[Instance, ...]
    lost: tuple[Instance, ...]
    ending: tuple[Instance, ...]

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
    lost_after: float,
) -> InstanceGroups:
    """Group a version's instance records. `requirements` are by specification id, in preferred order."""
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
        elif requirement is None or not requirement.permits(by_id[instance.cluster_id]):
            stale.append(instance)
        else:
            current[instance.specification_id or ""].append(instance)
    groups = {key: tuple(group) for key, group in current.items()}
    return InstanceGroups(groups, tuple(stale), tuple(lost), tuple(ending))


def placed(instance: Instance) -> Placed:
    """Return an instance as placement sees it."""
    return Placed(
        id=instance.id,
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
    """Return the last start-up times by instance id, newest last.

    `known` are earlier ones, whose records may be gone. Restarted instances are left out, since their
    start-up began before the restart.
    """
    found = dict(known)
    ready = [each for each in instances if each.ready_at is not None and not each.restarts]
    for instance in sorted(ready, key=lambda each: each.ready_at or 0.0):
        took = max(0.0, (instance.ready_at or 0.0) - instance.created_at)
        found.setdefault(instance.id, took)
    return dict(list(found.items())[-RECENT_STARTUPS:])


def by_cluster(instances: Iterable[Instance]) -> dict[str, int]:
    """Return the number of instances by cluster."""
    return dict(Counter(each.cluster_id for each in instances))


def devices_of(spec: DeploymentSpecification) -> int:
    """Return what one instance takes of a cluster's pool: its GPUs, or one CPU slot."""
    return 1 if spec.gpu == CPU else max(1, spec.gpus_per_instance)


def unreported(
    instances: Iterable[Instance], clusters: Sequence[Cluster], pending_devices: Mapping[str, int]
) -> dict[tuple[str, str], int]:
    """Return the devices, by cluster and GPU, that the last heartbeats cannot include yet.

    `pending_devices` is what a pending instance will take, by its key.
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
    """Return the clusters with their free instances of one specification; pools count devices.

    `most` bounds the instances in each cluster, if given.
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
        wanted = Capacity(spec.gpu, spec.instance_type, instances)
        kinds = {(one.gpu, one.instance_type): replace(one, free=0) for one in cluster.capacity}
        if (spec.gpu, spec.instance_type) in kinds:
            kinds[spec.gpu, spec.instance_type] = wanted
        # Other kinds stay listed: a refusal names what the cluster has.
        seen.append(replace(cluster, capacity=tuple(kinds.values())))
    return tuple(seen)


def silent(now: float, clusters: Iterable[Cluster], after: float) -> set[str]:
    """Return the clusters without a heartbeat for `after` seconds: they get no new instances."""
    return {cluster.id for cluster in clusters if now - cluster.heard_at > after}


def first_heard(now: float, heartbeat_at: float) -> float:
    """Return when a cluster whose record already existed was last heard; an old record is no sign of life."""
    return now if now - heartbeat_at <= CLOCKS_DIFFER else min(now, heartbeat_at)
