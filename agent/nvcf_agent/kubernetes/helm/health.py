"""Whether the objects of a chart do what they should, and when they count as failed. Pure.

A pod is judged as that of a container function. Pods that a controller replaces by itself, such as an evicted
one of a Deployment, are no failure of the instance.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.client.kinds import POD
from nvcf_agent.kubernetes.helm.kinds import (
    CRON_JOB,
    DEPLOYMENT,
    JOB,
    REPLICA_SET,
    STATEFUL_SET,
    VOLUME_CLAIM,
    Ref,
)
from nvcf_agent.kubernetes.pods import status
from nvcf_agent.kubernetes.pods.observe import Failure, Limits, Memory, failure_of, remember, why_not_ready
from nvcf_agent.kubernetes.pods.texts import described
from nvcf_agent.state.managed_instance import Category
from nvcf_proto.charts.objects import items, member, text
from nvcf_proto.icms.causes import Cause

_NO_MEMORY = Memory()
_READY_CONDITIONS = ("Ready", "Available")


@dataclass(frozen=True)
class View:
    """What was seen of an instance: the chart's objects, the pods that they made, and the worker's pod.

    `expected` are the chart's objects, `live` those that exist. `installed`: all of them were applied, so a
    missing one was deleted. `by_worker`: only the worker counts, since the chart says so.
    """

    expected: Sequence[Ref]
    live: Mapping[Ref, Object]
    pods: Sequence[Object]
    worker: Object | None
    memories: Mapping[str, Memory] = field(default_factory=dict)
    installed: bool = True
    by_worker: bool = False


@dataclass(frozen=True)
class Health:
    """What is not as it should be; texts are empty where all is well. `failure` is final."""

    objects: str = ""
    worker: str = ""
    scheduled: bool = False
    failure: Failure | None = None
    worker_failed: bool = False

    @property
    def is_good(self) -> bool:
        """Whether all is well."""
        return not self.objects and not self.worker


def remember_all(pods: Sequence[Object], before: Mapping[str, Memory], now: float) -> dict[str, Memory]:
    """Return the memories of these pods, by uid, after a look at Unix time `now`."""
    uids = {each["metadata"]["uid"]: each for each in pods}
    return {uid: remember(pod, before.get(uid, _NO_MEMORY), now) for uid, pod in uids.items()}


def health_of(view: View, now: float, limits: Limits) -> Health:
    """Return an instance's health at Unix time `now`."""
    worker = _worker(view, now, limits)
    pods = [] if view.by_worker else [each for each in view.pods if not _is_replaced(each)]
    everyone = [*pods, *([view.worker] if view.worker is not None else [])]
    waiting, failure = worker
    if failure is not None:
        return Health(worker=failure.text, failure=failure, worker_failed=True)
    objects = "" if view.by_worker else _objects(view, pods)
    failure = None if view.by_worker else _failed(view, pods, now, limits)
    scheduled = all(status.node_of(each) or _has_ended(each) for each in everyone)
    return Health(failure.text if failure else objects, waiting, scheduled, failure)


def _worker(view: View, now: float, limits: Limits) -> tuple[str, Failure | None]:
    pod = view.worker
    if pod is None:
        gone = Failure(
            Cause.UTILS_POD_NOT_FOUND, Category.LOST, "the worker's pod was deleted, not by the agent"
        )
        return "there is no pod of the worker", gone if view.installed else None
    found = failure_of(pod, view.memories.get(pod["metadata"]["uid"], _NO_MEMORY), now, limits)
    if found is not None:
        return found.text, _named("the worker", found, pod)
    return "" if status.is_ready(pod) else f"the worker: {why_not_ready(pod)}", None


def _named(what: str, failure: Failure, pod: Object) -> Failure:
    told = f"{what}: {described(failure, pod)}"
    return Failure(failure.cause, failure.category, told, failure.container)


def _is_replaced(pod: Object) -> bool:
    """Return whether a controller sees to a pod that ends, or it has done its work."""
    if any(each.get("controller") for each in items(pod, "metadata", "ownerReferences")):
        return status.is_going(pod) or member(pod, "status", "phase") in ("Failed", "Succeeded")
    return _has_ended(pod)


def _has_ended(pod: Object) -> bool:
    return text(member(pod, "status", "phase")) == "Succeeded"


def _objects(view: View, pods: Sequence[Object]) -> str:
    """Return why the chart's objects are not ready; empty if they are."""
    for ref in view.expected:
        obj = view.live.get(ref)
        kind, name = ref
        if obj is None:
            return f'{kind.kind} "{name}" is missing'
        if why := _READINESS.get(kind, _by_conditions)(obj):
            return f'{kind.kind} "{name}" {why}'
    late = next((each for each in pods if not status.is_ready(each)), None)
    return "" if late is None else f'Pod "{late["metadata"]["name"]}": {why_not_ready(late)}'


def _failed(view: View, pods: Sequence[Object], now: float, limits: Limits) -> Failure | None:
    for pod in pods:
        memory = view.memories.get(pod["metadata"]["uid"], _NO_MEMORY)
        if (found := failure_of(pod, memory, now, limits)) is not None:
            return _named(f'Pod "{pod["metadata"]["name"]}"', found, pod)
    for ref in view.expected:
        obj, (kind, name) = view.live.get(ref), ref
        if obj is None and view.installed:
            told = f'{kind.kind} "{name}" was deleted, and not by the agent'
            return Failure(Cause.NOT_FOUND, Category.LOST, told)
        for why in _final(kind.kind, obj):
            return Failure(Cause.FAILED, Category.UNKNOWN, f'{kind.kind} "{name}" {why}')
    return None


def _final(kind: str, obj: Object | None) -> Iterator[str]:
    """Yield why an object fails for good."""
    refused = _condition(obj, "ReplicaFailure")
    if (
        refused is not None
        and refused.holds
        and any(each in refused.message for each in ("exceeded quota", "forbidden", "Invalid value"))
    ):
        yield f"cannot make its pods: {refused.message}"
    if kind == JOB.kind and (found := _condition(obj, "Failed")) is not None and found.holds:
        yield f"failed: {found.message or found.reason}"
    if kind == VOLUME_CLAIM.kind and member(obj, "status", "phase") == "Lost":
        yield "has lost its volume"


def _condition(obj: Object | None, kind: str) -> status.Condition | None:
    return None if obj is None else status.condition(obj, kind)


def _count(obj: Object, *path: str, default: int = 0) -> int:
    found = member(obj, *path)
    return found if isinstance(found, int) else default


def _of_replicas(obj: Object, ready: int) -> str:
    wanted = _count(obj, "spec", "replicas", default=1)
    if _count(obj, "status", "observedGeneration") < _count(obj, "metadata", "generation"):
        return "is new"
    return "" if ready >= wanted else f"has {ready} of {wanted} pods ready"


def _deployment(obj: Object) -> str:
    updated, available = (_count(obj, "status", f"{each}Replicas") for each in ("updated", "available"))
    return _of_replicas(obj, min(updated, available))


def _stateful_set(obj: Object) -> str:
    ready = _count(obj, "status", "readyReplicas")
    old = text(member(obj, "status", "updateRevision")) != text(member(obj, "status", "currentRevision"))
    if old and member(obj, "spec", "updateStrategy", "type") != "OnDelete":
        ready = min(ready, _count(obj, "status", "updatedReplicas"))
    return _of_replicas(obj, ready)


def _job(obj: Object) -> str:
    done = status.condition(obj, "Complete")
    if (done is not None and done.holds) or member(obj, "spec", "suspend"):
        return ""
    active, ready = _count(obj, "status", "active"), _count(obj, "status", "ready")
    return "" if 0 < active <= ready else f"has {ready} pods ready"


def _by_conditions(obj: Object) -> str:
    """Judge a kind that is not known: by the conditions that most kinds have."""
    for name in _READY_CONDITIONS:
        found = status.condition(obj, name)
        if found is not None and not found.holds:
            return f"is not {name.lower()}: {found.message or found.reason}"
    return ""


_READINESS: Mapping[object, Callable[[Object], str]] = {
    DEPLOYMENT: _deployment,
    STATEFUL_SET: _stateful_set,
    REPLICA_SET: lambda obj: _of_replicas(obj, _count(obj, "status", "readyReplicas")),
    JOB: _job,
    CRON_JOB: lambda _: "",
    # Its own look follows with those of all pods.
    POD: lambda _: "",
}
