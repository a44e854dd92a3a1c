"""Handlers of creation and termination messages. Pure.

Messages arrive twice, late and in any order. An instance id that was ever accepted, refused or ended here is
known, and creating it again does nothing.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nvcf_agent.errors import NoCapacity, Unsupported
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Inventory, Share
from nvcf_agent.state.managed_instance import Category, ManagedInstance
from nvcf_proto.compute import CreationMessage, TerminationMessage
from nvcf_proto.ids import is_id
from nvcf_proto.models import Instance, InstanceState

_OVER = (InstanceState.TERMINATING, InstanceState.COMPLETED, InstanceState.FAILED)


@dataclass(frozen=True)
class CreationResult:
    """New instances of a creation message, refused ones included, and why other ids were ignored."""

    instances: tuple[ManagedInstance, ...] = ()
    ignored: tuple[str, ...] = ()


def handle_creation(
    message: CreationMessage,
    *,
    cluster: str,
    inventory: Inventory,
    held: Collection[Share],
    known: Collection[str],
    records: Mapping[str, Instance],
    wall: float,
    draining: bool = False,
) -> CreationResult:
    """Return the instances that a creation message makes at Unix time `wall`.

    `held` is what present instances take, `known` the ids seen before, `records` the existing records by id.
    """
    if message.cluster_id != cluster:
        return CreationResult(ignored=(f"it is for cluster {message.cluster_id}",))
    made: list[ManagedInstance] = []
    ignored: list[str] = []
    shares = list(held)
    for instance_id in dict.fromkeys(message.instance_ids):
        record = records.get(instance_id)
        why = _not_wanted(message, instance_id, known, record, wall)
        if why is not None:
            ignored.append(f"instance {instance_id}: {why}")
            continue
        order = message.replace(instance_ids=(instance_id,))
        created_at = record.created_at if record is not None else None
        instance = _admit(order, inventory, shares, wall, created_at, draining)
        shares.append(instance.held)
        made.append(instance)
    return CreationResult(tuple(made), tuple(ignored))


def _not_wanted(
    message: CreationMessage, instance_id: str, known: Collection[str], record: Instance | None, wall: float
) -> str | None:
    # The id becomes the name of a folder and of a file.
    if not is_id(instance_id):
        return "that is no id"
    if instance_id in known:
        return "known already"
    if wall > message.expires_at:
        return f"the message expired {wall - message.expires_at:.0f} s ago"
    if record is not None and record.cluster_id != message.cluster_id:
        return f"its record belongs to cluster {record.cluster_id}"
    if record is not None and record.state in _OVER:
        return f"its record says {record.state.value}"
    return None


def _admit(
    order: CreationMessage,
    inventory: Inventory,
    shares: list[Share],
    wall: float,
    created_at: float | None,
    draining: bool,
) -> ManagedInstance:
    try:
        if draining:
            raise NoCapacity("this cluster's agent is stopping")
        share = inventory.place(order, shares)
    except NoCapacity as error:
        return transitions.refused(order, Category.CAPACITY, str(error), wall, created_at)
    except Unsupported as error:
        return transitions.refused(order, Category.UNSUPPORTED, str(error), wall, created_at)
    return transitions.accepted(order, share, wall, created_at)


@dataclass(frozen=True)
class TerminationResult:
    """Instances changed by a termination message, and unknown ids, which are to be persisted."""

    instances: tuple[ManagedInstance, ...] = ()
    unknown: tuple[str, ...] = ()


def handle_termination(
    message: TerminationMessage, *, cluster: str, known: Mapping[str, ManagedInstance], wall: float
) -> TerminationResult:
    """Return what a termination message changes. It may arrive before its creation message."""
    if message.cluster_id != cluster:
        return TerminationResult()
    changed: list[ManagedInstance] = []
    unknown: list[str] = []
    reason = message.reason or "the autoscaler asked for it"
    for instance_id in dict.fromkeys(message.instance_ids):
        instance = known.get(instance_id)
        if instance is None:
            unknown.append(instance_id)
            continue
        after = transitions.terminating(instance, reason, message.grace_seconds, wall)
        if after is not instance:
            changed.append(after)
    return TerminationResult(tuple(changed), tuple(unknown))
