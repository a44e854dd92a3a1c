"""Which queued tasks are launched now, and where. Pure; times are Unix seconds.

Tasks fill what functions leave idle: room for the instances that functions lack is kept free in every cluster
where these may run. Accounts take turns: the next place goes to the account whose tasks hold the fewest GPUs,
and there to the task of the highest priority that waits longest.

A task is placed whole: one order in one cluster has all its GPUs, or it gets none. So that small tasks do not
keep a large one waiting for ever, room is collected for the one that waits longest.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from nvcf_autoscaler.placement.place import Cluster, Requirement, place
from nvcf_autoscaler.placement.usage import OVER, Usage, Usages
from nvcf_autoscaler.placement.view import clusters_for, devices_of
from nvcf_proto.models import DeploymentSpecification, Instance

PATIENCE = 300.0
"""After so many seconds room is collected for a task of several GPUs that is the first of its account."""
NOTHING: Usages = MappingProxyType({})
COLLECTING = "its GPUs are collected for a larger task that waits longer"
FUNCTIONS_FIRST = "functions wait for this GPU"


@dataclass(frozen=True)
class QueuedTask:
    """A task that waits for a place."""

    id: str
    account: str
    created_at: float
    specification: DeploymentSpecification
    requirement: Requirement
    priority: int = 0

    @property
    def rank(self) -> tuple[int, float, str]:
        """Its place among the tasks of its account, lowest first."""
        return -self.priority, self.created_at, self.id


@dataclass(frozen=True)
class TaskPlace:
    """A place for a task: a cluster, and how many of its GPUs, or CPU slots, the task takes."""

    task_id: str
    cluster_id: str
    devices: int


@dataclass
class TaskPlan:
    """The tasks that are launched, in order, and why others are not, by id."""

    places: list[TaskPlace] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)


Lack = tuple[DeploymentSpecification, Requirement, int]
"""A specification of a function, what it requires, and how many instances it lacks of its minimum."""


def lack_of(
    specification_id: str,
    spec: DeploymentSpecification,
    requirement: Requirement,
    instances: Iterable[Instance],
) -> Lack | None:
    """Return how many instances a specification lacks of its minimum; None if it lacks none."""
    there = sum(
        each.specification_id == specification_id and each.state not in OVER and each.draining_since is None
        for each in instances
    )
    missing = spec.min_instances - there
    return (spec, requirement, missing) if missing > 0 else None


def reserved(usages: Usages, lacks: Iterable[Lack], clusters: Sequence[Cluster]) -> Usages:
    """Return what is in use with what functions lack of their minimum, in every cluster that may get it."""
    found = {key: Usage(list(usage.sizes), usage.reported) for key, usage in usages.items()}
    for spec, requirement, missing in lacks:
        for cluster in clusters:
            if requirement.permits(cluster):
                usage = found.setdefault((cluster.id, spec.gpu), Usage())
                usage.sizes += [devices_of(spec, [cluster])] * missing
    return found


def plan_tasks(
    now: float,
    queued: Iterable[QueuedTask],
    clusters: Sequence[Cluster],
    usages: Usages,
    *,
    held: Mapping[str, int],
    lasting: Usages = NOTHING,
    busy_gpus: frozenset[str] = frozenset(),
    most: int = 64,
) -> TaskPlan:
    """Return the places of tasks, at most `most`.

    `usages` is what is in use or kept free, `lasting` the part of it that no end of a task frees, `held` the
    GPUs that each account's tasks hold. For `busy_gpus` functions wait: the room that they need is kept free,
    and is the reason why a task gets none.
    """
    plan = TaskPlan()
    taken = {key: Usage(list(usage.sizes), usage.reported) for key, usage in usages.items()}
    waiting: dict[str, deque[QueuedTask]] = defaultdict(deque)
    for task in sorted(queued, key=lambda each: each.rank):
        waiting[task.account].append(task)
    turns = [(held.get(account, 0), tasks[0].created_at, account) for account, tasks in waiting.items()]
    collecting = _collect(now, turns, waiting, clusters, taken, lasting)
    heapq.heapify(turns)
    refused: dict[tuple[Requirement, int], str] = {}
    while turns and len(plan.places) < most:
        holding, _, account = heapq.heappop(turns)
        tasks = waiting[account]
        while tasks:
            task = tasks.popleft()
            kind = (task.requirement, task.specification.gpus_per_instance)
            why = refused.get(kind)
            if why is None:
                found, why = _place_one(now, task, clusters, taken, busy_gpus)
                if found is not None:
                    plan.places.append(found)
                    holding = max(holding, held.get(account, 0)) + found.devices
                    break
                refused[kind] = why
            behind = collecting is not None and collecting.specification.gpu == task.specification.gpu
            plan.refusals[task.id] = f"{why}; {COLLECTING}" if behind and task is not collecting else why
        if tasks:
            heapq.heappush(turns, (holding, tasks[0].created_at, account))
    return plan


def _collect(
    now: float,
    turns: list[tuple[int, float, str]],
    waiting: Mapping[str, deque[QueuedTask]],
    clusters: Sequence[Cluster],
    taken: dict[tuple[str, str], Usage],
    lasting: Usages,
) -> QueuedTask | None:
    """Give the first turn to the longest waiting large task, or keep room for it in one cluster.

    That is the cluster with the most free GPUs, of those that the ends of tasks make large enough. Returns
    the task for which room is kept.
    """
    firsts = (waiting[account][0] for _, _, account in turns)
    late = [
        each for each in firsts if now - each.created_at > PATIENCE and devices_of(each.specification) > 1
    ]
    if not late:
        return None
    task = min(late, key=lambda each: (each.created_at, each.id))
    spec, requirement = task.specification, task.requirement
    if place(now, 1, requirement, clusters_for(spec, clusters, taken)).assigned:
        turns[:] = [(-1, each[1], each[2]) if each[2] == task.account else each for each in turns]
        return None
    emptied = [
        replace(each, capacity=tuple(replace(one, free=one.total) for one in each.capacity))
        for each in clusters
    ]
    usable = [
        each.id for each in clusters_for(spec, emptied, lasting) if requirement.refusal(each, now) is None
    ]
    if not usable:
        return None
    single = spec.replace(gpus_per_instance=1)
    free = {
        each.id: each.free(spec.gpu, spec.instance_type) for each in clusters_for(single, clusters, taken)
    }
    best = min(usable, key=lambda cluster_id: (-free[cluster_id], cluster_id))
    there = [each for each in clusters if each.id == best]
    taken.setdefault((best, spec.gpu), Usage()).sizes.append(devices_of(spec, there))
    return task


def _place_one(
    now: float,
    task: QueuedTask,
    clusters: Sequence[Cluster],
    taken: dict[tuple[str, str], Usage],
    busy_gpus: frozenset[str],
) -> tuple[TaskPlace | None, str]:
    spec = task.specification
    found = place(now, 1, task.requirement, clusters_for(spec, clusters, taken))
    if not found.assigned:
        return None, FUNCTIONS_FIRST if spec.gpu in busy_gpus else found.reason
    cluster_id = found.assigned[0][0]
    devices = devices_of(spec, [each for each in clusters if each.id == cluster_id])
    taken.setdefault((cluster_id, spec.gpu), Usage()).sizes.append(devices)
    return TaskPlace(task.id, cluster_id, devices), ""
