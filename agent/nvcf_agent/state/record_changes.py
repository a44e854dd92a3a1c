"""Differences between the agent's instances and the records in the instances bucket. Pure.

From its creation message on, an instance's record belongs to its agent. Others may only close it: an
autoscaler that takes the cluster for dead writes FAILED or removes the record. Then the instance must end.
"""

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass

from nvcf_agent.state.actions import KEEP_FINISHED_SECONDS
from nvcf_agent.state.managed_instance import ManagedInstance, Phase, instance_record
from nvcf_proto.models import Instance, InstanceState

_FINAL = (InstanceState.COMPLETED, InstanceState.FAILED)
LOST = "lost"


@dataclass(frozen=True)
class Unchanged:
    """Nothing to write."""


@dataclass(frozen=True)
class Write:
    """The record has to become this."""

    record: Instance


@dataclass(frozen=True)
class Missing:
    """The record existed and was removed."""


@dataclass(frozen=True)
class Closed:
    """Another process has closed the record."""

    reason: str


RecordChange = Unchanged | Write | Missing | Closed


def compare(instance: ManagedInstance, stored: Instance | None) -> RecordChange:
    """Return the change that the stored record of an instance requires."""
    wanted = instance_record(instance)
    if stored is None:
        if not instance.published:
            return Write(wanted)
        return Unchanged() if instance.is_final else Missing()
    if instance.is_final and stored.state in _FINAL:
        return Unchanged()
    if stored.state in _FINAL:
        return Closed(f"its record was closed: {stored.reason or stored.state.value}")
    if stored.state is InstanceState.TERMINATING and not instance.is_ending:
        # Announced by the autoscaler. The termination message is on its way.
        return Unchanged()
    if instance.phase is Phase.PENDING and stored.state is InstanceState.PENDING:
        return Unchanged()
    if stored.draining_since is not None and wanted.draining_since is None:
        # The autoscaler has written why it ends. The termination message is on its way.
        reason = wanted.reason or stored.reason
        wanted = wanted.replace(draining_since=stored.draining_since, reason=reason)
    return Unchanged() if stored == wanted else Write(wanted)


@dataclass(frozen=True)
class Stray:
    """A record of this cluster without an instance. `record` is its replacement; None removes it."""

    key: str
    record: Instance | None


def strays(
    records: Iterable[Instance],
    *,
    cluster: str,
    known: Collection[str],
    ended: Collection[str],
    wall: float,
    keep_finished: float = KEEP_FINISHED_SECONDS,
) -> list[Stray]:
    """Return the changes to this cluster's records without an instance.

    A PENDING record waits for its creation message, unless its id is in `ended`. The autoscaler decides when
    it has waited too long.
    """
    found: list[Stray] = []
    for record in records:
        if record.cluster_id != cluster or record.id in known:
            continue
        if record.state in _FINAL:
            if wall - record.updated_at > keep_finished:
                found.append(Stray(record.key, None))
        elif record.id in ended:
            over = record.changed(
                wall, state=InstanceState.COMPLETED, reason="ended before it was created", pid=None
            )
            found.append(Stray(record.key, over))
        elif record.state is not InstanceState.PENDING:
            text = f"{LOST}: the agent of cluster {cluster} knows nothing of it"
            failed = record.changed(wall, state=InstanceState.FAILED, category=LOST, reason=text, pid=None)
            found.append(Stray(record.key, failed))
    return found


class MissingFor:
    """For how long things have been missing without a break, in seconds of a monotonic clock."""

    def __init__(self, gone_after: float) -> None:
        self._gone_after = gone_after
        self._since: dict[Hashable, float] = {}

    def exceeded(self, thing: Hashable, missing: bool, now: float) -> bool:
        """Note whether a thing is missing now. Return True once it has been missing for `gone_after`."""
        if not missing:
            self._since.pop(thing, None)
            return False
        return now - self._since.setdefault(thing, now) >= self._gone_after

    def drop(self, instance_id: str) -> None:
        """Forget an instance."""
        for kind in ("version", "record"):
            self._since.pop((kind, instance_id), None)
