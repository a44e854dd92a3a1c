"""Which clusters get new instances, and which instances end. Pure; times are Unix seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nvcf_autoscaler.placement.timings import Timings, timings_of
from nvcf_proto.compute import HEARTBEAT_SECONDS

LOST_AFTER = 30.0
"""Least silence of a cluster after which its instances are lost."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """GPUs of one kind for one instance type. `free` are instances, or GPUs as the cluster reported them.

    `gpus_per_instance` is fixed by the type; 0: the deployment says it. `node_gpus` and `nodes` tell about
    the nodes, where known; `attributes` are those of the nodes, beside the cluster's.
    """

    gpu: str
    instance_type: str
    free: int
    total: int = 0
    gpus_per_instance: int = 0
    node_gpus: int = 0
    nodes: int = 0
    attributes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster as described by its last heartbeat.

    It came at `heard_at`, and a gateway got it at `heartbeat_at`, both by this process' clock.
    `cordoned`: no new instances; `draining`: and those that run are replaced elsewhere. `authorized` are the
    accounts whose functions may run there; `*` is every account. `runs_processes`: and no containers.
    """

    id: str
    region: str
    heard_at: float
    capacity: tuple[Capacity, ...]
    group: str | None = None
    attributes: frozenset[str] = frozenset()
    healthy: bool = True
    name: str = ""
    heartbeat_at: float = 0.0
    authorized: frozenset[str] = frozenset("*")
    cordoned: bool = False
    draining: bool = False
    runs_processes: bool = False
    timings: Timings = field(default_factory=lambda: timings_of(HEARTBEAT_SECONDS, LOST_AFTER))

    @property
    def label(self) -> str:
        """Name for people, the id if it has none."""
        return self.name or self.id

    def is_one_of(self, names: Sequence[str]) -> bool:
        """Return whether some of these names or ids are the cluster's."""
        return self.id in names or (bool(self.name) and self.name in names)

    def unavailable(self, now: float) -> str | None:
        """Return why the cluster takes no new instances at all, as text; None if it does."""
        if now - self.heard_at > self.timings.silent_after:
            return f"silent for {now - self.heard_at:.0f} s"
        if self.draining or self.cordoned:
            return "draining" if self.draining else "cordoned"
        return None if self.healthy else "unhealthy"

    def free(self, gpu: str, instance_type: str) -> int:
        """Return the free instances of a kind; never negative."""
        return sum(
            max(0, one.free) for one in self.capacity if one.gpu == gpu and one.instance_type == instance_type
        )


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a GPU specification requires of a cluster. Empty means any.

    `clusters` (names or ids) and `regions` are in preferred order. `max_per_cluster` bounds this version's
    instances in a cluster. `nca_id` is the account of the function; empty: it is not looked at.
    `process`: it needs a cluster that runs processes, or one that runs containers; None: not looked at.
    """

    gpu: str
    instance_type: str
    clusters: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    attributes: frozenset[str] = frozenset()
    max_per_cluster: int | None = None
    nca_id: str = ""
    process: bool | None = None

    def refusal(self, cluster: Cluster, now: float) -> str | None:
        """Return why this cluster gets no instance, as text; None if it may."""
        unavailable = cluster.unavailable(now)
        if unavailable is not None:
            return unavailable
        if not self._authorized(cluster):
            return "not for this account"
        if not self._runs(cluster):
            return "runs no processes" if self.process else "runs no containers"
        if self.clusters and not cluster.is_one_of(self.clusters):
            return "not among the deployment's clusters"
        if self.regions and cluster.region not in self.regions:
            return f"in region {cluster.region}"
        if self.groups and cluster.group not in self.groups:
            return "not in the deployment's cluster groups"
        lacking = self.lacking(cluster)
        if lacking and self._is_offered(cluster):
            return f"lacks {', '.join(sorted(lacking))}"
        if not cluster.free(self.gpu, self.instance_type):
            return self._missing(cluster)
        return None

    def _missing(self, cluster: Cluster) -> str:
        """Return which GPU or instance type a cluster lacks, and which it has."""
        types = sorted({one.instance_type for one in cluster.capacity if one.gpu == self.gpu})
        wanted = f"{self.instance_type} with {self.gpu}"
        if not types:
            wanted, types = f"GPU {self.gpu}", sorted({one.gpu for one in cluster.capacity})
        elif self.instance_type in types:
            return f"no free {wanted}"
        return f"no {wanted}" + (f", only {', '.join(types)}" if types else "")

    def permits(self, cluster: Cluster) -> bool:
        """Return whether a cluster is one of those named, whatever its state and capacity."""
        return (
            self._authorized(cluster)
            and self._runs(cluster)
            and (not self.clusters or cluster.is_one_of(self.clusters))
            and (not self.regions or cluster.region in self.regions)
            and (not self.groups or cluster.group in self.groups)
            and not self.lacking(cluster)
        )

    def _is_offered(self, cluster: Cluster) -> bool:
        return any((one.gpu, one.instance_type) == (self.gpu, self.instance_type) for one in cluster.capacity)

    def lacking(self, cluster: Cluster) -> frozenset[str]:
        """Return the attributes that neither the cluster has nor its nodes with this GPU and type."""
        return self.attributes.difference(
            cluster.attributes,
            *(
                one.attributes
                for one in cluster.capacity
                if (one.gpu, one.instance_type) == (self.gpu, self.instance_type)
            ),
        )

    def _runs(self, cluster: Cluster) -> bool:
        return self.process is None or self.process == cluster.runs_processes

    def _authorized(self, cluster: Cluster) -> bool:
        return not self.nca_id or "*" in cluster.authorized or self.nca_id in cluster.authorized

    def free(self, cluster: Cluster, existing: int, pending: int) -> int:
        """Return how many more instances fit, with `existing` of this version and `pending` not reported."""
        free = cluster.free(self.gpu, self.instance_type) - max(0, pending)
        return free if self.max_per_cluster is None else min(free, self.max_per_cluster - existing)

    def rank(self, cluster: Cluster) -> tuple[int, int]:
        """Return the place in the preferred order, lowest first."""
        names = (cluster.id, cluster.name)
        return (
            next((index for index, one in enumerate(self.clusters) if one in names), 0),
            self.regions.index(cluster.region) if self.regions else 0,
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """Instances by cluster id in preferred order, how many found no place, and the refusals by cluster.

    `labels` are the names of clusters for people, by id.
    """

    assigned: tuple[tuple[str, int], ...]
    unplaced: int
    refusals: tuple[tuple[str, str], ...]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """The placement as text."""
        parts = [f"{count} in {self.labels.get(cluster, cluster)}" for cluster, count in self.assigned]
        if self.unplaced:
            clusters: dict[str, list[str]] = {}
            for cluster, text in self.refusals:
                clusters.setdefault(text, []).append(self.labels.get(cluster, cluster))
            why = "; ".join(f"{', '.join(sorted(names))}: {text}" for text, names in clusters.items())
            parts.append(f"no place for {self.unplaced}" + (f" ({why})" if why else ""))
        return ", ".join(parts) or "nothing to place"


def place(
    now: float,
    count: int,
    requirement: Requirement,
    clusters: Iterable[Cluster],
    existing: Mapping[str, int] | None = None,
    pending: Mapping[str, int] | None = None,
) -> Placement:
    """Choose clusters for `count` new instances.

    Preferred clusters are filled first. Among equally preferred ones, each instance goes to the cluster with
    the fewest instances of this version (`existing`, by cluster), then the most room, then the lowest id.
    `pending` are instances of this kind of any version that were sent to a cluster after its last heartbeat.
    Never places more than is free, nor in a silent cluster. The order of `clusters` does not matter.
    """
    there = dict(existing or {})
    sent = pending or {}
    refusals: list[tuple[str, str]] = []
    room: dict[str, int] = {}
    ranks: dict[str, tuple[int, int]] = {}
    everything = sorted(clusters, key=lambda one: one.id)
    for cluster in everything:
        refusal = requirement.refusal(cluster, now)
        if refusal is None:
            free = requirement.free(cluster, there.get(cluster.id, 0), sent.get(cluster.id, 0))
            if free > 0:
                room[cluster.id] = free
                ranks[cluster.id] = requirement.rank(cluster)
                continue
            refusal = "full"
        refusals.append((cluster.id, refusal))
    assigned: dict[str, int] = {}
    left = max(0, count)
    while left and room:
        best = min(room, key=lambda one: (ranks[one], there.get(one, 0), -room[one], one))
        assigned[best] = assigned.get(best, 0) + 1
        there[best] = there.get(best, 0) + 1
        room[best] -= 1
        left -= 1
        if not room[best]:
            del room[best]
            refusals.append((best, "full"))
    ordered = sorted(assigned.items(), key=lambda item: (ranks[item[0]], item[0]))
    labels = {each.id: each.label for each in everything}
    return Placement(tuple(ordered), left, tuple(refusals) if left else (), labels)


def room(
    now: float,
    requirement: Requirement,
    clusters: Iterable[Cluster],
    existing: Mapping[str, int] | None = None,
    pending: Mapping[str, int] | None = None,
) -> int:
    """Return how many more instances could be placed now: `SpecificationObservation.available`."""
    there, sent = existing or {}, pending or {}
    return sum(
        max(0, requirement.free(cluster, there.get(cluster.id, 0), sent.get(cluster.id, 0)))
        for cluster in clusters
        if requirement.refusal(cluster, now) is None
    )


@dataclass(frozen=True, slots=True)
class Placed:
    """An instance and its cluster. `ready` is False while it starts; `idle_since` is None while it serves."""

    id: str
    cluster_id: str
    created_at: float
    ready: bool
    in_flight: int = 0
    idle_since: float | None = None


def endings(instances: Sequence[Placed], count: int) -> tuple[Placed, ...]:
    """Return the `count` instances to end: starting ones (newest first), the longest idle, the least busy."""

    def order(one: Placed) -> tuple[int, float, str]:
        if not one.ready:
            return (0, -one.created_at, one.id)
        if one.in_flight == 0:
            return (1, one.idle_since if one.idle_since is not None else one.created_at, one.id)
        return (2, float(one.in_flight), one.id)

    return tuple(sorted(instances, key=order)[: max(0, count)])
