"""How an agent's requests and the records in the instances bucket are brought together. Pure.

From its creation message on, an instance's record is its agent's. Others may only close it: an autoscaler
that took the cluster for dead writes FAILED or removes the record, and then the instance must not go on.
"""

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass

from nvcf_agent.state.actions import KEEP_FINISHED_SECONDS
from nvcf_agent.state.managed_instance import Phase, Request, instance_record
from nvcf_proto.models import Instance, InstanceState

_FINAL = (InstanceState.COMPLETED, InstanceState.FAILED)
LOST = "lost"


@dataclass(frozen=True)
class Fine:
    """Nothing to write."""


@dataclass(frozen=True)
class Write:
    """The record is to become this."""

    record: Instance


@dataclass(frozen=True)
class Missing:
    """The record was there and is not any more."""


@dataclass(frozen=True)
class Closed:
    """Somebody else has ended the instance."""

    reason: str


Verdict = Fine | Write | Missing | Closed


def compare(request: Request, stored: Instance | None) -> Verdict:
    """What a request's record, as it is stored now, asks for."""
    wanted = instance_record(request)
    if stored is None:
        if not request.published:
            return Write(wanted)
        return Fine() if request.is_final else Missing()
    if request.is_final and stored.state in _FINAL:
        return Fine()
    if stored.state in _FINAL:
        return Closed(f"its record was closed: {stored.reason or stored.state.value}")
    if stored.state is InstanceState.TERMINATING and not request.is_ending:
        # Announced by the autoscaler; the message that says how is on its way.
        return Fine()
    if request.phase is Phase.PENDING and stored.state is InstanceState.PENDING:
        return Fine()
    if stored.draining_since is not None and wanted.draining_since is None:
        # The autoscaler has chosen it and says why; its message is on its way.
        reason = wanted.reason or stored.reason
        wanted = wanted.replace(draining_since=stored.draining_since, reason=reason)
    return Fine() if stored == wanted else Write(wanted)


@dataclass(frozen=True)
class Stray:
    """A record of this cluster that no request of its agent belongs to; `record` None removes it."""

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
    """What becomes of this cluster's records without a request.

    A PENDING one waits for its creation message, unless the instance was `ended` before; whether it waits
    too long is the autoscaler's to say.
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


class Absences:
    """Since when which thing has been missing without a break; times in seconds of a monotonic clock."""

    def __init__(self, gone_after: float) -> None:
        self._gone_after = gone_after
        self._since: dict[Hashable, float] = {}

    def lasts(self, thing: Hashable, missing: bool, now: float) -> bool:
        """Note whether it is missing now; True once it has been so for long enough."""
        if not missing:
            self._since.pop(thing, None)
            return False
        return now - self._since.setdefault(thing, now) >= self._gone_after

    def drop(self, instance_id: str) -> None:
        """Forget what is noted about an instance."""
        for kind in ("version", "record"):
            self._since.pop((kind, instance_id), None)
