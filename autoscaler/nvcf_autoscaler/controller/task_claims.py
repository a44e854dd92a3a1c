"""What waits for room that preemptible tasks hold, from the records. It reads only the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from nvcf_autoscaler.controller.cache import Cache
from nvcf_autoscaler.controller.mapping import requirement_of
from nvcf_autoscaler.placement.place import Cluster
from nvcf_autoscaler.placement.preemption import Claim, Preemptible
from nvcf_autoscaler.placement.tasks import FUNCTIONS_FIRST, Lack, QueuedTask, lack_of
from nvcf_autoscaler.placement.usage import OVER, Usage, Usages, holds, was_reported
from nvcf_proto.models import DeploymentSpecification, FunctionVersion, Instance
from nvcf_proto.models.deployments import specifications_of
from nvcf_proto.task_policies import may_be_preempted

MOST_TASK_CLAIMS = 8
"""Queued tasks for which others are preempted in one round."""
MOST_FUNCTION_CLAIMS = 64
"""Instances of one version for which tasks are preempted in one round, and for which room is kept free."""
SLACK_SECONDS = 2.0
"""So much earlier or later an agent may count an instance than its record says."""


def function_lacks(cache: Cache, lacking: Mapping[str, int]) -> list[Lack]:
    """Return what is kept free for functions: what they lack of their minimum, or what found no room."""
    found: list[Lack] = []
    for version, key, spec, instances in _specifications(cache, cache.deployments.keys()):
        requirement = requirement_of(spec, version.nca_id)
        lack = lack_of(key, spec, requirement, instances)
        waiting = _more(key, spec, instances, lacking.get(version.id, 0))
        missing = max(waiting, 0 if lack is None else lack[2])
        if missing:
            found.append((spec, requirement, missing))
    return found


def function_claims(cache: Cache, lacking: Mapping[str, int]) -> list[Claim]:
    """Return claims for what versions are `lacking`, of each specification that may have more instances."""
    return [
        Claim(f"{version.id} {n}", f"function {version.name}", spec, requirement_of(spec, version.nca_id))
        for version, key, spec, instances in _specifications(cache, lacking)
        for n in range(_more(key, spec, instances, lacking[version.id]))
    ]


def _specifications(
    cache: Cache, version_ids: Iterable[str]
) -> Iterator[tuple[FunctionVersion, str, DeploymentSpecification, list[Instance]]]:
    for version_id in version_ids:
        version, deployment = cache.versions.get(version_id), cache.deployments.get(version_id)
        if version is not None and deployment is not None:
            instances = cache.instances_of(version_id)
            for key, spec in specifications_of(deployment).items():
                yield version, key, spec, instances


def _more(key: str, spec: DeploymentSpecification, instances: Iterable[Instance], missing: int) -> int:
    """Return how many more instances of a specification are wanted and allowed."""
    there = sum(each.specification_id == key and each.state not in OVER for each in instances)
    return max(0, min(missing, spec.max_instances - there, MOST_FUNCTION_CLAIMS))


def task_claims(refusals: Mapping[str, str], queued: Iterable[QueuedTask]) -> list[Claim]:
    """Return claims of the first queued tasks that found no room. Functions that wait go first."""
    waiting = (each for each in queued if refusals.get(each.id, FUNCTIONS_FIRST) != FUNCTIONS_FIRST)
    first = sorted(waiting, key=lambda each: each.rank)[:MOST_TASK_CLAIMS]
    return [
        Claim(
            each.id,
            f"a task of priority {each.priority}",
            each.specification,
            each.requirement,
            each.account,
            each.priority,
        )
        for each in first
    ]


def preemptible_tasks(cache: Cache) -> Iterator[Preemptible]:
    """Return the tasks whose runs may be ended."""
    for key in cache.task_keys:
        instance, task = cache.instances.get(key), cache.tasks.get(key.partition(".")[0])
        if instance is None or task is None or _is_ending(instance) or task.request_id != instance.request_id:
            continue
        if may_be_preempted(task):
            yield Preemptible(
                task.id,
                task.nca_id,
                task.priority,
                instance.cluster_id,
                task.specification.gpu,
                instance.devices,
                instance.created_at if task.started_at is None else task.started_at,
            )


def staying(
    now: float, usages: Usages, clusters: Iterable[Cluster], cache: Cache
) -> dict[tuple[str, str], Usage]:
    """Return what is in use without the instances that end already.

    What a heartbeat may have counted was counted: a task too many is worse than a heartbeat too late.
    """
    by_id = {each.id: each for each in clusters}
    found = {key: Usage(list(usage.sizes), usage.reported) for key, usage in usages.items()}
    for instance in cache.all_instances():
        task = cache.tasks.get(instance.version_id) if instance.is_task else None
        stops = task is not None and task.stopping is not None and task.request_id == instance.request_id
        cluster = by_id.get(instance.cluster_id)
        usage = found.get((instance.cluster_id, instance.gpu or ""))
        if cluster is None or usage is None:
            continue
        if was_reported(instance, cluster, SLACK_SECONDS) and not was_reported(instance, cluster):
            usage.reported += instance.devices
        if (_is_ending(instance) or stops) and holds(now, instance, cluster):
            usage.sizes.remove(instance.devices)
    return found


def _is_ending(instance: Instance) -> bool:
    return instance.state in OVER or instance.draining_since is not None
