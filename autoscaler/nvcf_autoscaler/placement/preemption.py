"""Which preemptible tasks make room for what waits. Pure; times are Unix seconds.

A claim is an instance of a function, or a queued task, that found no place. Functions may take the room of
any preemptible task; a queued task only that of tasks of its own account with a lower priority. What is
ending already counts as free, so nothing is ended for a claim that will get its room anyway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nvcf_autoscaler.placement.place import Cluster, Requirement
from nvcf_autoscaler.placement.usage import Usage, Usages
from nvcf_autoscaler.placement.view import clusters_for, devices_of
from nvcf_proto.models import DeploymentSpecification

MOST_DEVICES = 64
"""Largest instance for which tasks are preempted."""
MOST_LOOKED_AT = 256
"""Preemptible tasks of one cluster that are looked at for one claim, the cheapest first."""


@dataclass(frozen=True)
class Claim:
    """One instance that found no place. Without an account it is a function's. `name` is for people.

    Of several claims with one id, the first that gets room counts.
    """

    id: str
    name: str
    specification: DeploymentSpecification
    requirement: Requirement
    account: str | None = None
    priority: int = 0


@dataclass(frozen=True)
class Preemptible:
    """A task whose run may be ended."""

    task_id: str
    account: str
    priority: int
    cluster_id: str
    gpu: str
    devices: int
    started_at: float

    def may_go_for(self, claim: Claim) -> bool:
        """Return whether a claim may take its room."""
        if claim.account is None:
            return True
        return claim.account == self.account and claim.priority > self.priority


@dataclass(frozen=True)
class Preempted:
    """A task that makes room for a claim."""

    task_id: str
    claim: Claim


def preemptions(
    now: float,
    claims: Iterable[Claim],
    running: Sequence[Preemptible],
    clusters: Sequence[Cluster],
    usages: Usages,
) -> list[Preempted]:
    """Return the tasks to preempt. `usages` is what stays in use: without what is ending already.

    Each claim takes the cheapest set in any of its clusters: first by the highest priority in the set, then
    by the GPU-seconds that have been run, then by the number of tasks. If no set suffices, none is ended.
    """
    taken = {key: Usage(list(usage.sizes), usage.reported) for key, usage in usages.items()}
    left = list(running)
    found: list[Preempted] = []
    served: set[str] = set()
    for claim in claims:
        if claim.id in served:
            continue
        permitted = [each for each in clusters if claim.requirement.refusal(_emptied(each), now) is None]
        where = next((each for each in permitted if _fits(claim, each, taken)), None)
        chosen: tuple[Preemptible, ...] = ()
        if where is None:
            options = ((_cheapest(now, claim, each, left, taken), each) for each in permitted)
            sets = [(cost, each.id, victims, each) for (cost, victims), each in options if victims]
            if not sets:
                continue
            _, _, chosen, where = min(sets, key=lambda one: one[:2])
        served.add(claim.id)
        found += [Preempted(each.task_id, claim) for each in chosen]
        left = [each for each in left if each not in chosen]
        _release(chosen, taken)
        gpu = claim.specification.gpu
        taken.setdefault((where.id, gpu), Usage()).sizes.append(devices_of(claim.specification, [where]))
    return found


Cost = tuple[int, float, int]
"""Highest priority in a set, GPU-seconds that it has run, number of tasks."""
_NONE: tuple[Cost, tuple[Preemptible, ...]] = ((0, 0.0, 0), ())


def _cheapest(
    now: float, claim: Claim, cluster: Cluster, running: Iterable[Preemptible], taken: Usages
) -> tuple[Cost, tuple[Preemptible, ...]]:
    """Return the cheapest set of tasks whose end makes room for a claim in a cluster; empty if none."""
    gpu = claim.specification.gpu
    there = [each for each in running if (each.cluster_id, each.gpu) == (cluster.id, gpu)]
    there = [each for each in there if each.may_go_for(claim)]
    there.sort(key=lambda each: (each.priority, (now - each.started_at) * each.devices, each.task_id))
    del there[MOST_LOOKED_AT:]
    for highest in sorted({each.priority for each in there}):
        covers = _covers(now, [each for each in there if each.priority <= highest])
        # A larger set never costs less, so the first one that suffices is the cheapest.
        for seconds, count, victims in covers:
            usages = {key: Usage(list(usage.sizes), usage.reported) for key, usage in taken.items()}
            _release(victims, usages)
            if _fits(claim, cluster, usages):
                return (highest, seconds, count), victims
    return _NONE


def _covers(now: float, tasks: Sequence[Preemptible]) -> list[tuple[float, int, tuple[Preemptible, ...]]]:
    """Return for 1, 2, … GPUs the cheapest set of tasks that hold at least so many, while there is one."""
    most = min(MOST_DEVICES, sum(each.devices for each in tasks))
    best: list[tuple[float, int, tuple[Preemptible, ...]] | None] = [(0.0, 0, ()), *([None] * most)]
    for task in tasks:
        seconds = max(0.0, now - task.started_at) * task.devices
        for wanted in range(most, 0, -1):
            rest = best[max(0, wanted - task.devices)]
            if rest is None:
                continue
            option = (rest[0] + seconds, rest[1] + 1, (*rest[2], task))
            known = best[wanted]
            if known is None or option[:2] < known[:2]:
                best[wanted] = option
    return [each for each in best[1:] if each is not None]


def _fits(claim: Claim, cluster: Cluster, usages: Usages) -> bool:
    (seen,) = clusters_for(claim.specification, [cluster], usages)
    return seen.free(claim.specification.gpu, claim.specification.instance_type) > 0


def _emptied(cluster: Cluster) -> Cluster:
    """Return a cluster as if all its GPUs were free, to ask whether it could run something at all."""
    return replace(cluster, capacity=tuple(replace(each, free=each.total) for each in cluster.capacity))


def _release(victims: Iterable[Preemptible], usages: dict[tuple[str, str], Usage]) -> None:
    for each in victims:
        usage = usages.get((each.cluster_id, each.gpu))
        if usage is not None and each.devices in usage.sizes:
            usage.sizes.remove(each.devices)
