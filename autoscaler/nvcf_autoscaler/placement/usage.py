"""What instances hold of each cluster's GPUs, between two heartbeats too. Pure; times are Unix seconds.

The control plane's own records are newer than a heartbeat, which may be minutes old. A heartbeat also counts
what the records do not know. So the GPUs in use are those of the records, and what was in use at the last
heartbeat beyond the records of that moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nvcf_autoscaler.placement.place import Cluster
from nvcf_proto.models import Instance, InstanceState

OVER = frozenset((InstanceState.COMPLETED, InstanceState.FAILED))


@dataclass
class Usage:
    """GPUs of one kind in one cluster: the sizes of the instances that hold some, and how many GPUs of the
    records' instances were in use at the last heartbeat."""

    sizes: list[int] = field(default_factory=list)
    reported: int = 0


NO_USAGE = Usage()
Usages = Mapping[tuple[str, str], Usage]
"""By cluster id and GPU."""


def usage_of(now: float, instances: Iterable[Instance], clusters: Iterable[Cluster]) -> Usages:
    """Return what the instances of all versions hold, by cluster and GPU."""
    by_id = {each.id: each for each in clusters}
    found: dict[tuple[str, str], Usage] = {}
    for each in instances:
        cluster = by_id.get(each.cluster_id)
        if cluster is None or each.gpu is None:
            continue
        usage = found.setdefault((cluster.id, each.gpu), Usage())
        if holds(now, each, cluster):
            usage.sizes.append(each.devices)
        if was_reported(each, cluster):
            usage.reported += each.devices
    return found


def holds(now: float, instance: Instance, cluster: Cluster) -> bool:
    """Return whether an instance's GPUs are in use: until its agent has released them.

    An agent may report the end before the processes are gone. What an older heartbeat counts is in use
    anyway, and after some time an agent is no longer waited for.
    """
    if instance.state not in OVER:
        return True
    if instance.released_at is not None or taken_up_at(instance) is None:
        return False
    ended = instance.updated_at
    return ended > cluster.heartbeat_at and now - ended < cluster.timings.release


def was_reported(instance: Instance, cluster: Cluster, slack: float = 0.0) -> bool:
    """Return whether the last heartbeat counted the instance, and the records still do.

    With `slack`, whether it may have: a heartbeat that was made so many seconds before or after a change.
    """
    taken_up = taken_up_at(instance)
    if taken_up is None or taken_up - slack > cluster.heartbeat_at:
        return False
    if instance.state not in OVER:
        return True
    ended = instance.updated_at if instance.released_at is None else instance.released_at
    return ended + slack > cluster.heartbeat_at


def taken_up_at(instance: Instance) -> float | None:
    """Return when an instance's agent first said that it has it; None: it has not."""
    known = (instance.acknowledged_at, instance.reported_at, instance.ready_at)
    return min((each for each in known if each is not None), default=None)
