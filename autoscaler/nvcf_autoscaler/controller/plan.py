"""What has to be done so that a version has the instances it should. Pure; times are Unix seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nvcf_autoscaler.placement.place import Placement, endings
from nvcf_autoscaler.placement.view import Standing, placed
from nvcf_proto.models import Instance, InstanceState

PENDING_EXPIRES = 20.0
RESEND_AFTER = 3.0
# A deployment that changes without room for both forms gives up this part of its instances at a time.
LEAVE_AT_ONCE = 4


@dataclass(frozen=True)
class Create:
    """New instances of one specification in one cluster."""

    specification_id: str
    cluster_id: str
    count: int


@dataclass(frozen=True)
class Resend:
    """The creation message of an instance whose agent has not answered; sending it twice does nothing."""

    instance: Instance


@dataclass(frozen=True)
class Terminate:
    """Instances that end, and why."""

    instances: tuple[Instance, ...]
    reason: str


@dataclass(frozen=True)
class ResendEnd:
    """The termination message of an instance whose agent has not answered; `attempt` counts them."""

    instance: Instance
    attempt: int


@dataclass(frozen=True)
class GiveUp:
    """An instance that nobody runs: its record is closed, so that it is replaced."""

    instance: Instance
    reason: str


Action = Create | Resend | Terminate | ResendEnd | GiveUp


def housekeeping(now: float, stands: Standing) -> list[Action]:
    """What the records themselves ask for, whatever is desired."""
    actions: list[Action] = [
        GiveUp(each, f"nothing was heard of cluster {each.cluster_id}") for each in stands.lost
    ]
    for instance in (*stands.up, *stands.stale):
        if instance.state is not InstanceState.PENDING:
            continue
        age = now - instance.created_at
        if age > PENDING_EXPIRES:
            actions.append(GiveUp(instance, f"no agent took it up within {PENDING_EXPIRES:g} s"))
        elif age > RESEND_AFTER:
            actions.append(Resend(instance))
    for instance in stands.ending:
        if instance.state is InstanceState.TERMINATING or instance.draining_since is None:
            continue
        waited = now - instance.draining_since
        if instance.state is InstanceState.PENDING and waited > PENDING_EXPIRES:
            actions.append(GiveUp(instance, "it is not needed any more, and no agent took it up"))
        elif waited > RESEND_AFTER:
            actions.append(ResendEnd(instance, int(waited / RESEND_AFTER)))
    return actions


def shrink(stands: Standing, desired: Mapping[str, int], unplaced: int = 0, started: int = 0) -> list[Action]:
    """Which instances end: those beyond what is desired, and stale ones once their successors serve.

    `unplaced` successors found no room: stale ones make some, a few at a time. `started` are those that were
    ordered just now.
    """
    actions: list[Action] = []
    for specification_id, instances in stands.current.items():
        excess = len(instances) - desired.get(specification_id, 0)
        if excess > 0:
            actions.append(Terminate(_last(instances, excess), "fewer instances are needed"))
    if stands.stale:
        running = sum(each.state is InstanceState.RUNNING for each in stands.up)
        if not unplaced and running >= min(sum(desired.values()), len(stands.stale)):
            actions.append(Terminate(stands.stale, "the deployment has changed"))
        elif unplaced:
            making_room = _last(stands.stale, min(unplaced, _may_leave(stands, started)))
            if making_room:
                reason = "the deployment has changed, and its successor needs room"
                actions.append(Terminate(making_room, reason))
    return actions


def _may_leave(stands: Standing, started: int) -> int:
    """How many stale instances may leave before their successors serve: a quarter of all, one at least.

    Those that are on their way, out or in, count.
    """
    starting = started + sum(each.state is not InstanceState.RUNNING for each in stands.up)
    under_way = len(stands.ending) + starting
    everything = len(stands.stale) + len(stands.up)
    return max(1, everything // LEAVE_AT_ONCE) - under_way


def give_up(instances: Iterable[Instance], ration: Mapping[str, int]) -> list[Action]:
    """Which instances end because other versions are to have what they take; `ration` is by cluster."""
    there: dict[str, list[Instance]] = {}
    for each in instances:
        there.setdefault(each.cluster_id, []).append(each)
    actions: list[Action] = []
    for cluster_id, group in there.items():
        excess = len(group) - ration.get(cluster_id, 0)
        if excess > 0:
            actions.append(Terminate(_last(group, excess), "other versions wait for what it takes"))
    return actions


def _last(instances: Sequence[Instance], count: int) -> tuple[Instance, ...]:
    ids = {each.id for each in endings([placed(one) for one in instances], count)}
    return tuple(each for each in instances if each.id in ids)


def grow(specification_id: str, placement: Placement) -> list[Action]:
    """New instances as placed."""
    return [Create(specification_id, cluster_id, count) for cluster_id, count in placement.assigned]


def undeployed(
    stands: Standing, *, queue_empty: bool, since: float, now: float, patience: float
) -> list[Action]:
    """A version that is no longer deployed: what is queued is served first, for `patience` seconds."""
    rest: Sequence[Instance] = (*stands.up, *stands.stale)
    if not rest or (not queue_empty and now - since < patience):
        return []
    return [Terminate(tuple(rest), "the version is not deployed any more")]
