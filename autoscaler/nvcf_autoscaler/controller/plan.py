"""Actions that bring a version to the desired instances. Pure; times are Unix seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nvcf_autoscaler.placement.place import Placement, endings
from nvcf_autoscaler.placement.view import InstanceGroups, placed
from nvcf_proto.models import Instance, InstanceState

PENDING_EXPIRES = 20.0
RESEND_AFTER = 3.0
# When a deployment changes without room for both forms, 1/4 of its instances end at a time.
REPLACED_PART = 4


@dataclass(frozen=True)
class Create:
    """Create instances of one specification in one cluster."""

    specification_id: str
    cluster_id: str
    count: int


@dataclass(frozen=True)
class Resend:
    """Send a creation message again, because the agent has not answered; duplicates are ignored."""

    instance: Instance


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
    reason: str


Action = Create | Resend | Terminate | ResendEnd | GiveUp


def housekeeping(now: float, groups: InstanceGroups) -> list[Action]:
    """Return the actions that the records require, whatever is desired."""
    actions: list[Action] = [
        GiveUp(each, f"nothing was heard of cluster {each.cluster_id}") for each in groups.lost
    ]
    for instance in (*groups.up, *groups.stale):
        if instance.state is not InstanceState.PENDING:
            continue
        age = now - instance.created_at
        if age > PENDING_EXPIRES:
            actions.append(GiveUp(instance, f"no agent took it up within {PENDING_EXPIRES:g} s"))
        elif age > RESEND_AFTER:
            actions.append(Resend(instance))
    for instance in groups.ending:
        if instance.state is InstanceState.TERMINATING or instance.draining_since is None:
            continue
        waited = now - instance.draining_since
        if instance.state is InstanceState.PENDING and waited > PENDING_EXPIRES:
            actions.append(GiveUp(instance, "it is not needed any more, and no agent took it up"))
        elif waited > RESEND_AFTER:
            actions.append(ResendEnd(instance, int(waited / RESEND_AFTER)))
    return actions


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
            actions.append(Terminate(groups.stale, "the deployment has changed"))
        elif unplaced:
            making_room = _last(groups.stale, min(unplaced, _replaceable(groups, started)))
            if making_room:
                reason = "the deployment has changed, and its successor needs room"
                actions.append(Terminate(making_room, reason))
    return actions


def _replaceable(groups: InstanceGroups, started: int) -> int:
    """Return how many stale instances may end before their successors serve.

    That is a quarter of all, at least one, less those that start or end now.
    """
    starting = started + sum(each.state is not InstanceState.RUNNING for each in groups.up)
    under_way = len(groups.ending) + starting
    everything = len(groups.stale) + len(groups.up)
    return max(1, everything // REPLACED_PART) - under_way


def reclaim(instances: Iterable[Instance], fair_share: Mapping[str, int]) -> list[Action]:
    """End instances beyond the fair share, which is by cluster, in favour of other versions."""
    there: dict[str, list[Instance]] = {}
    for each in instances:
        there.setdefault(each.cluster_id, []).append(each)
    actions: list[Action] = []
    for cluster_id, group in there.items():
        excess = len(group) - fair_share.get(cluster_id, 0)
        if excess > 0:
            actions.append(Terminate(_last(group, excess), "other versions wait for what it takes"))
    return actions


def _last(instances: Sequence[Instance], count: int) -> tuple[Instance, ...]:
    ids = {each.id for each in endings([placed(one) for one in instances], count)}
    return tuple(each for each in instances if each.id in ids)


def grow(specification_id: str, placement: Placement) -> list[Action]:
    """Create instances as placed."""
    return [Create(specification_id, cluster_id, count) for cluster_id, count in placement.assigned]


def undeploy(
    groups: InstanceGroups, *, queue_empty: bool, since: float, now: float, patience: float
) -> list[Action]:
    """End the instances of an undeployed version, once its queue is empty or `patience` seconds are over."""
    rest: Sequence[Instance] = (*groups.up, *groups.stale)
    if not rest or (not queue_empty and now - since < patience):
        return []
    return [Terminate(tuple(rest), "the version is not deployed any more")]
