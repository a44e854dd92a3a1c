"""What waits for room that preemptible tasks hold, from the records. It reads only the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from nvcf_autoscaler.controller.cache import Cache
from nvcf_autoscaler.controller.mapping import requirement_of
from nvcf_autoscaler.placement.place import Cluster
from nvcf_autoscaler.placement.preemption import Claim, Preemptible
from nvcf_autoscaler.placement.tasks import FUNCTIONS_FIRST, Lack, QueuedTask, lack_of
from nvcf_autoscaler.placement.usage import OVER, Usage, Usages, holds, was_reported
from nvcf_proto.models import Instance
from nvcf_proto.models.deployments import specifications_of
from nvcf_proto.task_policies import may_be_preempted

MOST_TASK_CLAIMS = 8
"""Queued tasks for which others are preempted in one round."""
SLACK_SECONDS = 2.0
"""So much earlier or later an agent may count an instance than its record says."""


def function_lacks(cache: Cache) -> list[Lack]:
    """Return what functions lack of their minimum."""
    found: list[Lack] = []
    for deployment in cache.deployments.values():
        version = cache.versions.get(deployment.version_id)
        if version is None:
            continue
        instances = cache.instances_of(version.id)
        for key, spec in specifications_of(deployment).items():
            lack = lack_of(key, spec, requirement_of(spec, version.nca_id), instances)
            if lack is not None:
                found.append(lack)
    return found


def function_claims(cache: Cache, lacking: Iterable[str]) -> list[Claim]:
    """Return a claim for each specification of the versions `lacking` capacity that may have one more."""
    found: list[Claim] = []
    for version_id in lacking:
        version, deployment = cache.versions.get(version_id), cache.deployments.get(version_id)
        if version is None or deployment is None:
            continue
        instances = [each for each in cache.instances_of(version_id) if each.state not in OVER]
        for key, spec in specifications_of(deployment).items():
            if sum(each.specification_id == key for each in instances) < spec.max_instances:
                name = f"function {version.name}"
                found.append(Claim(version_id, name, spec, requirement_of(spec, version.nca_id)))
    return found


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
