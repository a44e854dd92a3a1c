"""Compares the control plane's list of instances with the agent's own (protocol.md, section 6.5). Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from nvcf_agent.state.managed_instance import ManagedInstance, Phase
from nvcf_proto.icms.reports import InstanceState, KnownInstance

_STATES = {Phase.RUNNING: InstanceState.RUNNING, Phase.TERMINATING: InstanceState.SHUTTING_DOWN}
_GONE = InstanceState.TERMINATED


@dataclass(frozen=True)
class Differences:
    """What follows from a comparison.

    `end`: ids of instances that are to end. `unknown`: request ids by the ids of instances that do not exist
    here and are to be reported terminated. `repeat`: requests to be reported again. `doubtful`: instances
    that start there and are unknown here; their creation message may still be on its way.
    """

    end: frozenset[str] = frozenset()
    unknown: Mapping[str, str] = field(default_factory=dict)
    repeat: frozenset[str] = frozenset()
    doubtful: frozenset[str] = frozenset()


def compare(
    listed: Iterable[KnownInstance],
    ours: Mapping[str, ManagedInstance],
    ended: Collection[str],
    doubtful: Collection[str],
) -> Differences:
    """Return what differs. `doubtful` are those of the last comparison."""
    end, repeat, waiting = set(), set(), set()
    unknown: dict[str, str] = {}
    there = {each.instance_id: each for each in listed if each.instance_state is not _GONE}
    for instance_id, theirs in there.items():
        instance = ours.get(instance_id)
        if instance is None:
            starting = theirs.instance_state is InstanceState.STARTING
            if starting and instance_id not in doubtful and instance_id not in ended:
                waiting.add(instance_id)
            else:
                unknown[instance_id] = theirs.request_id
        elif theirs.instance_state is InstanceState.SHUTTING_DOWN and not instance.is_ending:
            end.add(instance_id)
        elif theirs.instance_state is not _STATES.get(instance.phase, InstanceState.STARTING):
            repeat.add(instance.request_id)
    live = (each for each in ours.values() if each.acknowledged and not each.is_ending)
    repeat |= {each.request_id for each in live if each.id not in there}
    return Differences(frozenset(end), unknown, frozenset(repeat), frozenset(waiting))
