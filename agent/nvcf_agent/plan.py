"""From what is wanted and what is there to what is to be done. Pure; it looks at states, never at events."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nvcf_agent.desired import Slot, Wanted
from nvcf_agent.lifecycle import Lifecycle
from nvcf_proto.models import InstanceState
from nvcf_proto.settings import INFERENCE_READY_TIMEOUT

# Who stays when there are too many: the further along, the better.
_RANK = {
    InstanceState.RUNNING: 0,
    InstanceState.STARTING: 1,
    InstanceState.PENDING: 2,
    InstanceState.FAILED: 3,
}


@dataclass(frozen=True)
class Create:
    """Make a new instance of a version for a slot."""

    version_id: str
    slot: Slot


@dataclass(frozen=True)
class Start:
    """Start the process of an instance that has none."""

    instance_id: str
    slot: Slot


@dataclass(frozen=True)
class Terminate:
    """Ask an instance to finish and leave."""

    instance_id: str
    reason: str


@dataclass(frozen=True)
class Forget:
    """Remove the record and the files of an instance that is gone."""

    instance_id: str


@dataclass(frozen=True)
class GiveUp:
    """End the process of an instance that does not become ready; it will be started again."""

    instance_id: str
    reason: str


Action = Create | Start | Terminate | Forget | GiveUp


def plan(
    desired: Mapping[str, Wanted],
    actual: Iterable[Lifecycle],
    now: float,
    ready_timeout: float = INFERENCE_READY_TIMEOUT,
) -> list[Action]:
    """What to do at time `now` (monotonic seconds) so that `actual` comes nearer to `desired`.

    Doing it and planning again ends in no actions; doing nothing and planning again gives the same actions.
    """
    by_version: dict[str, list[Lifecycle]] = {version: [] for version in desired}
    actions: list[Action] = []
    for each in actual:
        if each.is_ending:
            if not each.has_process:
                actions.append(Forget(each.id))
        else:
            by_version.setdefault(each.record.version_id, []).append(each)
            if _is_overdue(each, now, ready_timeout):
                actions.append(GiveUp(each.id, f"not ready after {ready_timeout:g} s"))
    for version, instances in by_version.items():
        slots = desired[version].slots if version in desired else ()
        actions += _plan_version(version, slots, instances, now)
    return actions


def _plan_version(
    version: str, slots: tuple[Slot, ...], instances: list[Lifecycle], now: float
) -> list[Action]:
    kept, spare, free = _assign(slots, instances)
    actions: list[Action] = [Create(version, slot) for slot in sorted(free.elements())]
    for each, slot in kept:
        if not each.has_process and each.state is not InstanceState.STARTING and each.retry_at <= now:
            actions.append(Start(each.id, slot))
    complete = not free and all(each.state is InstanceState.RUNNING for each, _ in kept)
    for each in spare:
        # An instance with outdated settings serves until those that replace it do.
        replaced = each.slot not in slots and bool(slots)
        if not replaced or complete or each.state is not InstanceState.RUNNING:
            actions.append(Terminate(each.id, _reason(slots, replaced)))
    return actions


def _assign(
    slots: tuple[Slot, ...], instances: list[Lifecycle]
) -> tuple[list[tuple[Lifecycle, Slot]], list[Lifecycle], Counter[Slot]]:
    """Which instance takes which slot, who is left over, and the slots nobody takes."""
    free = Counter(slots)
    kept: list[tuple[Lifecycle, Slot]] = []
    undecided: list[Lifecycle] = []
    order = sorted(instances, key=lambda each: (_RANK[each.state], each.record.created_at, each.id))
    for each in order:
        if each.slot is not None and free[each.slot] > 0:
            free[each.slot] -= 1
            kept.append((each, each.slot))
        else:
            undecided.append(each)
    spare: list[Lifecycle] = []
    for each in undecided:
        slot = next(iter(sorted(free.elements())), None)
        # What has no process yet can still be given other settings.
        if slot is not None and not each.has_process and each.state is not InstanceState.STARTING:
            free[slot] -= 1
            kept.append((each, slot))
        else:
            spare.append(each)
    return kept, spare, +free


def _is_overdue(each: Lifecycle, now: float, ready_timeout: float) -> bool:
    starting = each.state is InstanceState.STARTING and each.has_process
    return starting and not each.verdict and now - each.started_at > ready_timeout


def _reason(slots: tuple[Slot, ...], replaced: bool) -> str:
    if not slots:
        return "the version is not deployed here any more"
    return "replaced by an instance with other settings" if replaced else "fewer instances are wanted"


def next_retry(actual: Iterable[Lifecycle], now: float) -> float:
    """Seconds until the first postponed start is due; infinite if there is none."""
    due = [each.retry_at - now for each in actual if not each.has_process and not each.is_ending]
    return min((delay for delay in due if delay > 0), default=float("inf"))
