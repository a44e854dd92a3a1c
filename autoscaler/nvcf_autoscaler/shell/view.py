"""Instances of a version as policy and placement see them. Pure; times are Unix seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nvcf_autoscaler.observation import SpecificationObservation
from nvcf_autoscaler.placement import Cluster, Placed, lost
from nvcf_proto.models import Instance, InstanceState

UP = frozenset((InstanceState.PENDING, InstanceState.STARTING, InstanceState.RUNNING))
RECENT_STARTUPS = 8


@dataclass(frozen=True)
class Standing:
    """A version's instances, sorted by what they count for.

    `current`: by specification id. `stale`: of specifications that the deployment no longer has.
    `lost`: in clusters that were silent too long. `ending`: on their way out.
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
    now: float, instances: Iterable[Instance], specification_ids: Sequence[str], clusters: Sequence[Cluster]
) -> Standing:
    """Sort a version's instance records."""
    living = [instance for instance in instances if instance.state in UP]
    ending = tuple(each for each in living if each.draining_since is not None)
    serving = [each for each in living if each.draining_since is None]
    gone = {each.id for each in lost(now, [placed(instance) for instance in serving], clusters)}
    current: dict[str, tuple[Instance, ...]] = {}
    for specification_id in specification_ids:
        current[specification_id] = tuple(
            each for each in serving if each.specification_id == specification_id and each.id not in gone
        )
    stale = tuple(each for each in serving if each.specification_id not in current and each.id not in gone)
    return Standing(current, stale, tuple(each for each in serving if each.id in gone), ending)


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


def recent_startups(instances: Iterable[Instance]) -> tuple[float, ...]:
    """The last few times from creation to ready, newest last, seconds."""
    ready = sorted(
        (each.ready_at, each.created_at)
        for each in instances
        if each.ready_at is not None and not each.restarts
    )
    return tuple(max(0.0, at - created) for at, created in ready[-RECENT_STARTUPS:])


def by_cluster(instances: Iterable[Instance]) -> dict[str, int]:
    """How many instances each cluster has."""
    return dict(Counter(each.cluster_id for each in instances))


def unreported(
    instances: Iterable[Instance], gpu: str, instance_type: str, clusters: Sequence[Cluster]
) -> dict[str, int]:
    """Instances of a kind that a cluster's last heartbeat cannot have counted yet, by cluster."""
    heard = {cluster.id: cluster.heard_at for cluster in clusters}
    return dict(
        Counter(
            each.cluster_id
            for each in instances
            if each.state in UP
            and each.specification_id is not None
            and each.specification_id.split("-", 1)[-1].startswith(f"{gpu}-{instance_type}")
            and each.created_at > heard.get(each.cluster_id, 0.0)
        )
    )
