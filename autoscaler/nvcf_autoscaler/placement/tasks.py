"""Which queued tasks are launched now, and where. Pure; times are Unix seconds.

Tasks fill what functions leave idle: room for the instances that functions lack is kept free in every cluster
where these may run. Accounts take turns: the next place goes to the account whose tasks hold the fewest GPUs,
and there to the task of the highest priority that waits longest.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nvcf_autoscaler.placement.place import Cluster, Requirement, place
from nvcf_autoscaler.placement.usage import OVER, Usage, Usages
from nvcf_autoscaler.placement.view import clusters_for, devices_of
from nvcf_proto.models import DeploymentSpecification, Instance

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
    busy_gpus: frozenset[str] = frozenset(),
    most: int = 64,
) -> TaskPlan:
    """Return the places of tasks, at most `most`.

    `usages` is what is in use or kept free, `held` the GPUs that each account's tasks hold. For `busy_gpus`
    functions wait: the room that they need is kept free, and is the reason why a task gets none.
    """
    plan = TaskPlan()
    taken = {key: Usage(list(usage.sizes), usage.reported) for key, usage in usages.items()}
    waiting: dict[str, deque[QueuedTask]] = defaultdict(deque)
    for task in sorted(queued, key=lambda each: each.rank):
        waiting[task.account].append(task)
    turns = [(held.get(account, 0), tasks[0].created_at, account) for account, tasks in waiting.items()]
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
                    holding += found.devices
                    break
                refused[kind] = why
            plan.refusals[task.id] = why
        if tasks:
            heapq.heappush(turns, (holding, tasks[0].created_at, account))
    return plan


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
