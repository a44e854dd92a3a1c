"""Handlers of creation and termination messages. Pure.

Messages arrive twice, late and in any order. A request is known by its id, never by the sequence of its
message, and creating it again does nothing.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from nvcf_agent.errors import NoCapacity, Unsupported
from nvcf_agent.state import order as orders
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Inventory, Share
from nvcf_agent.state.managed_instance import Category, ManagedInstance
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.messages import CreationMessage, TerminationMessage, instance_id_of


@dataclass(frozen=True)
class Created:
    """New instances of a request, refused ones included."""

    instances: tuple[ManagedInstance, ...]


@dataclass(frozen=True)
class Known:
    """The request is known already: nothing new is made, and its state is reported again."""


@dataclass(frozen=True)
class Ignored:
    """Nothing is made, for this reason."""

    reason: str


@dataclass(frozen=True)
class NoRoom:
    """The request fits the cluster, but not now."""

    gpu: str
    reason: str


CreationResult = Created | Known | Ignored | NoRoom


def by_own_clock(message: CreationMessage, age: float | None, wall: float) -> CreationMessage:
    """Return a message with its times by the agent's clock, on which it is `wall` now.

    `age` is how long ago it was published; None if that is unknown. Its times are those of another machine's
    clock, so only the time between them counts.
    """
    if message.issued_at is None or age is None:
        return message
    moved = wall - age - message.issued_at
    expires_at = None if message.expires_at is None else message.expires_at + moved
    return message.replace(issued_at=message.issued_at + moved, expires_at=expires_at)


def handle_creation(
    message: CreationMessage,
    *,
    inventory: Inventory,
    held: Iterable[Share],
    known: Collection[str],
    ended: Collection[str],
    wall: float,
) -> CreationResult:
    """Return what a creation message makes at Unix time `wall`.

    `held` is what present instances take, `known` the ids of present requests, `ended` the ids of instances
    that were ended before they came.
    """
    if message.request_id in known:
        return Known()
    count = range(message.instance_count)
    ids = [instance_id_of(message.request_id, index, message.workload) for index in count]
    wanted = [index for index in count if ids[index] not in ended]
    if not wanted:
        return Ignored("it was ended before it came")
    if message.expires_at is not None and wall > message.expires_at:
        # The order was repeated, or given up.
        return Ignored(f"its message expired {wall - message.expires_at:.0f} s ago")
    try:
        orders.environment(message)
        shares = inventory.place(message, held, len(wanted))
    except NoCapacity as error:
        return NoRoom(orders.gpu(message), str(error))
    except (Unsupported, InvalidRecord) as error:
        reason = str(error)
        refusals = (
            transitions.refused(message, Category.UNSUPPORTED, reason, wall, index) for index in wanted
        )
        return Created(tuple(refusals))
    pairs = zip(wanted, shares, strict=True)
    return Created(tuple(transitions.accepted(message, share, wall, index) for index, share in pairs))


@dataclass(frozen=True)
class TerminationResult:
    """Instances changed by a termination message, and unknown ids, which are to be stored and reported."""

    instances: tuple[ManagedInstance, ...] = ()
    unknown: tuple[str, ...] = ()


def handle_termination(
    message: TerminationMessage, *, known: Mapping[str, ManagedInstance], wall: float, default_grace: float
) -> TerminationResult:
    """Return what a termination message changes. It may arrive before its creation message."""
    changed: list[ManagedInstance] = []
    unknown: list[str] = []
    reason = message.reason or "the control plane asked for it"
    for instance_id in dict.fromkeys(message.instance_ids):
        instance = known.get(instance_id)
        if instance is None:
            unknown.append(instance_id)
            continue
        grace = orders.grace(instance.order, default_grace)
        after = transitions.terminating(instance, reason, grace, wall, Cause.BY_USER)
        if after is not instance:
            changed.append(after)
    return TerminationResult(tuple(changed), tuple(unknown))
