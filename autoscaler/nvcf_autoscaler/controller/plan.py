"""Actions that bring a version to the desired instances. Pure; times are Unix seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nvcf_autoscaler.placement.failures import UNACKNOWLEDGED
from nvcf_autoscaler.placement.place import Cluster, Placement, endings
from nvcf_autoscaler.placement.timings import attempts
from nvcf_autoscaler.placement.usage import taken_up_at
from nvcf_autoscaler.placement.view import InstanceGroups, devices_of, placed
from nvcf_proto.models import DeploymentSpecification, Instance, InstanceState

# When a deployment changes without room for both forms, 1/4 of its instances end at a time.
REPLACED_PART = 4


@dataclass(frozen=True)
class Create:
    """Create instances of one specification in one cluster; each takes `devices` of its GPUs or CPU slots."""

    specification_id: str
    cluster_id: str
    count: int
    gpu: str
    devices: int


@dataclass(frozen=True)
class OrderAgain:
    """Send an instance's order again, because nothing follows. Agents ignore a request that they have."""

    instance: Instance
    attempt: int


@dataclass(frozen=True)
class Terminate:
    """End instances, with the reason."""

    instances: tuple[Instance, ...]
    reason: str


@dataclass(frozen=True)
class ResendEnd:
    """Send a termination message again, because the agent has not answered."""

    instance: Instance
    attempt: int


@dataclass(frozen=True)
class GiveUp:
    """Close the record of an instance that no agent runs, so that it is replaced."""

    instance: Instance
    category: str
    reason: str


Action = Create | OrderAgain | Terminate | ResendEnd | GiveUp
LOST = "lost"


def housekeeping(
    now: float, groups: InstanceGroups, clusters: Iterable[Cluster], listened: float = math.inf
) -> list[Action]:
    """Return the actions that the records require, whatever is desired.

    `listened` is for how many seconds this process could hear of instances.
    """
    by_id = {each.id: each for each in clusters}
    actions: list[Action] = []
    for each in groups.lost:
        cluster = by_id.get(each.cluster_id)
        text = f"cluster {each.cluster_id} is gone"
        if cluster is not None:
            text = f"nothing was heard of cluster {cluster.label}"
        actions.append(GiveUp(each, LOST, text))
    for each in (*groups.up, *groups.stale, *groups.ending):
        action = _overdue(now, each, by_id[each.cluster_id], listened)
        if action is not None:
            actions.append(action)
    return actions


def _overdue(now: float, instance: Instance, cluster: Cluster, listened: float) -> Action | None:
    """Return what to do about an instance of which something is overdue."""
    times = cluster.timings
    taken_up, heard = taken_up_at(instance), last_heard(instance)
    waited = now - instance.created_at
    if taken_up is None and waited > times.order_expires:
        text = f"cluster {cluster.label} did not take it up within {times.order_expires:g} s"
        return GiveUp(instance, UNACKNOWLEDGED, text)
    if heard is None and taken_up is not None and min(now - taken_up, listened) > times.report_expires:
        text = f"cluster {cluster.label} took it up and reported nothing for {times.report_expires:g} s"
        return GiveUp(instance, LOST, text)
    if heard is not None and min(now - heard, listened) > times.forgotten_after:
        text = f"cluster {cluster.label} has not reported it for {now - heard:.0f} s"
        return GiveUp(instance, LOST, text)
    if instance.draining_since is not None:
        attempt = attempts(now - instance.draining_since, times.end)
        ends = instance.state is InstanceState.TERMINATING
        return ResendEnd(instance, attempt) if attempt and not ends else None
    quiet = taken_up is None or (heard is None and now - taken_up > times.first_report)
    attempt = attempts(waited, times.acknowledgement)
    return OrderAgain(instance, attempt) if quiet and attempt else None


def is_waiting(instance: Instance) -> bool:
    """Return whether something is to follow soon: a first report, or the end."""
    return last_heard(instance) is None or instance.draining_since is not None


def last_heard(instance: Instance) -> float | None:
    """Return when an agent last reported an instance, None before its first report."""
    return instance.ready_at if instance.reported_at is None else instance.reported_at


def shrink(
    groups: InstanceGroups, desired: Mapping[str, int], unplaced: int = 0, started: int = 0
) -> list[Action]:
    """End instances beyond what is desired, and stale ones once their successors serve.

    If `unplaced` successors found no room, stale instances make room, a few at a time. `started` is how many
    instances were created just now.
    """
    actions: list[Action] = []
    for specification_id, instances in groups.current.items():
        excess = len(instances) - desired.get(specification_id, 0)
        if excess > 0:
            actions.append(Terminate(_last(instances, excess), "fewer instances are needed"))
    if groups.stale:
        running = sum(each.state is InstanceState.RUNNING for each in groups.up)
        if not unplaced and running >= min(sum(desired.values()), len(groups.stale)):
            actions += _replaced(groups)
        elif unplaced:
            # A cluster that is drained takes no successors: its instances serve until others do elsewhere.
            there = [each for each in groups.stale if each.cluster_id not in groups.drained]
            making_room = _last(there, min(unplaced, _replaceable(groups, started)))
            if making_room:
                reason = "the deployment has changed, and its successor needs room"
                actions.append(Terminate(making_room, reason))
    return actions


def _replaced(groups: InstanceGroups) -> list[Action]:
    """End stale instances whose successors serve, and say why they were replaced."""
    drained = tuple(each for each in groups.stale if each.cluster_id in groups.drained)
    changed = tuple(each for each in groups.stale if each.cluster_id not in groups.drained)
    ended = (Terminate(drained, "its cluster is drained"), Terminate(changed, "the deployment has changed"))
    return [each for each in ended if each.instances]


def _replaceable(groups: InstanceGroups, started: int) -> int:
    """Return how many stale instances may end before their successors serve.

    That is a quarter of all, at least one, less those that start or end now.
    """
    starting = started + sum(each.state is not InstanceState.RUNNING for each in groups.up)
    under_way = len(groups.ending) + starting
    everything = len(groups.stale) + len(groups.up)
    return max(1, everything // REPLACED_PART) - under_way


def reclaim(
    now: float, instances: Iterable[Instance], fair_share: Mapping[str, int], clusters: Iterable[Cluster]
) -> list[Action]:
    """End instances beyond the fair share, which is by cluster, in favour of other versions.

    Nobody could start instead in a cluster that takes no new instances now, so there none is ended.
    """
    open_ = {each.id for each in clusters if each.unavailable(now) is None}
    there: dict[str, list[Instance]] = {}
    for each in instances:
        if each.cluster_id in open_:
            there.setdefault(each.cluster_id, []).append(each)
    actions: list[Action] = []
    for cluster_id, group in there.items():
        excess = len(group) - fair_share.get(cluster_id, 0)
        if excess > 0:
            actions.append(Terminate(_last(group, excess), "other versions wait for what it takes"))
    return actions


def _last(instances: Sequence[Instance], count: int) -> tuple[Instance, ...]:
    keys = {each.id for each in endings([placed(one) for one in instances], count)}
    return tuple(each for each in instances if each.key in keys)


def grow(
    specification_id: str, spec: DeploymentSpecification, placement: Placement, clusters: Iterable[Cluster]
) -> list[Create]:
    """Create instances as placed."""
    by_id = {each.id: each for each in clusters}
    return [
        Create(specification_id, cluster_id, count, spec.gpu, devices_of(spec, [by_id[cluster_id]]))
        for cluster_id, count in placement.assigned
    ]


def undeploy(
    groups: InstanceGroups, *, queue_empty: bool, since: float, now: float, patience: float
) -> list[Action]:
    """End the instances of an undeployed version, once its queue is empty or `patience` seconds are over."""
    rest: Sequence[Instance] = (*groups.up, *groups.stale)
    if not rest or (not queue_empty and now - since < patience):
        return []
    return [Terminate(tuple(rest), "the version is not deployed any more")]
