"""What is wrong with a pod, from its status alone (limits and words of NVIDIA's agent). Pure.

Times are Unix seconds. A pod that failed is reported once; the control plane orders another instance.
"""

from dataclasses import dataclass
from typing import Any

from nvcf_agent.kubernetes.pods import status
from nvcf_agent.kubernetes.pods.containers import INFERENCE, UTILS
from nvcf_agent.kubernetes.pods.status import Container, Pod
from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause

_PULLING = frozenset(("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError"))
_NO_IMAGE = frozenset(("InvalidImageName", "ErrImageNeverPull", "SignatureValidationFailed"))
_NOT_CREATED = frozenset(
    ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError",
     "PreStartHookError", "PostStartHookError")
)  # fmt: skip
# The runtime could not start the program; the next state is a back-off like that of a crash.
_NOT_STARTED = frozenset(("StartError", "ContainerCannotRun"))
_EVICTED = frozenset(("Evicted", "Preempting", "NodeShutdown", "Terminated", "TerminationByKubelet"))
_NODE_GONE = frozenset(("NodeLost", "DeletionByTaintManager", "DeletionByPodGC"))
# Time to be gone after the end of its grace period, before the node counts as lost.
_STUCK_SECONDS = 60.0


@dataclass(frozen=True)
class Limits:
    """How long a pod may be what it is, in seconds."""

    unscheduled: float = 600.0
    image_pull: float = 60.0
    restarts: int = 3
    restarting: float = 600.0
    init: float = 7200.0
    never_ready: float = 7200.0
    not_ready_again: float = 1800.0


@dataclass(frozen=True)
class Memory:
    """What a pod's status does not say: since when its images cannot be pulled, and whether it was ready."""

    pull_failed_at: float | None = None
    was_ready: bool = False


@dataclass(frozen=True)
class Failure:
    """Why an instance is given up. `text` says what was seen, `container` is the one to blame, if any."""

    cause: Cause
    category: Category
    text: str
    container: str = ""


def remember(pod: Pod, before: Memory, now: float) -> Memory:
    """Return the memory after a look at a pod."""
    failing = any(each.waiting in _PULLING and not each.has_image for each in status.containers(pod))
    since = (before.pull_failed_at if before.pull_failed_at is not None else now) if failing else None
    return Memory(since, before.was_ready or status.is_ready(pod))


def failure_of(pod: Pod, memory: Memory, now: float, limits: Limits) -> Failure | None:
    """Return why a pod is given up; None while it may go on."""
    if status.is_going(pod):
        return _stuck(pod, now)
    state = pod.get("status") or {}
    if state.get("phase") == "Failed":
        return _failed(pod, state)
    created = status.seconds(pod["metadata"].get("creationTimestamp")) or now
    listed = status.containers(pod)
    for found in (
        _not_created(listed),
        _not_pulled(listed, memory, now, limits),
        _unscheduled(pod, now - created, limits),
        None if status.is_ready(pod) else _restarting(listed, now - created, limits),
        _init_stuck(listed, now, limits),
        _not_ready(pod, memory, now, created, limits),
    ):
        if found is not None:
            return found
    return None


def end_of(pod: Pod) -> Failure:
    """Return why a pod that nobody ended through the agent is gone; `pod` is what was last seen of it."""
    disrupted = status.condition(pod, "DisruptionTarget")
    if disrupted is not None and disrupted.holds:
        if disrupted.reason in _NODE_GONE:
            text = f"its node {status.node_of(pod)} is gone: {disrupted.message}"
            return Failure(Cause.NOT_FOUND, Category.NODE_LOST, text)
        text = f"its pod was evicted ({disrupted.reason}): {disrupted.message}"
        return Failure(Cause.NOT_FOUND, Category.EVICTED, text)
    state = pod.get("status") or {}
    if state.get("phase") == "Failed":
        return _failed(pod, state)
    return Failure(Cause.NOT_FOUND, Category.LOST, "its pod was deleted, and not by the agent")


def has_drained(pod: Pod) -> bool:
    """Return whether a pod that is being deleted has no worker any more, but its server still runs."""
    if not status.is_going(pod):
        return False
    listed = {each.name: each for each in status.containers(pod)}
    server = listed.get(INFERENCE)
    # The server's readiness is a check of the worker beside it.
    return UTILS in listed and server is not None and server.running_since is not None and not server.ready


def why_not_ready(pod: Pod) -> str:
    """Return in a few words what a pod waits for."""
    if status.is_going(pod):
        return "its pod is being deleted"
    scheduled = status.condition(pod, "PodScheduled")
    if not status.node_of(pod):
        said = scheduled.message if scheduled is not None else ""
        return f"no node yet: {said}" if said else "no node yet"
    for each in status.containers(pod):
        if each.failure is not None:
            return f"container {each.name}: {how_ended(each)}"
        if each.waiting:
            return f"container {each.name}: {each.message or each.waiting}"
        if each.is_init and not each.runs_along and each.terminated is None:
            return f"container {each.name} is at work"
    late = _late(pod)
    return f"container {late} is not ready" if late else "not ready"


def how_ended(container: Container) -> str:
    """Return how the last run of a container ended, in words."""
    run = container.terminated or container.last
    if run is None:
        return "has not ended"
    if run.out_of_memory:
        limit = f" of {container.memory_limit}" if container.memory_limit else " of its node or pod"
        return f"used more memory than its limit{limit} (OOMKilled)"
    if run.reason in _NOT_STARTED:
        return f"could not be started: {run.message}"
    return f"ended with exit code {run.exit_code}" + (f" ({run.reason})" if run.reason != "Error" else "")


def _failed(pod: Pod, state: dict[str, Any]) -> Failure:
    reason, message = state.get("reason") or "", state.get("message") or ""
    text = ": ".join(each for each in (reason, message) if each) or "its pod failed"
    disrupted = status.condition(pod, "DisruptionTarget")
    if reason in _EVICTED or (disrupted is not None and disrupted.reason in _EVICTED):
        return Failure(Cause.FAILED, Category.EVICTED, f"its node ended it: {text}")
    if reason in _NODE_GONE or (disrupted is not None and disrupted.reason in _NODE_GONE):
        return Failure(Cause.NOT_FOUND, Category.NODE_LOST, f"its node {status.node_of(pod)} is gone: {text}")
    if reason == "UnexpectedAdmissionError" or reason.startswith(("OutOf", "Node")) or "Admission" in reason:
        return Failure(Cause.ADMISSION_ERROR, Category.ADMISSION, f"its node did not take it: {text}")
    blamed = next((each for each in status.containers(pod) if each.failure is not None), None)
    if blamed is not None and not reason:
        text = f"container {blamed.name} {how_ended(blamed)}"
    category = Category.OUT_OF_MEMORY if _out_of_memory(blamed) else Category.UNKNOWN
    return Failure(Cause.FAILED, category, text, blamed.name if blamed is not None else "")


def _not_created(listed: list[Container]) -> Failure | None:
    for each in listed:
        if each.waiting in _NO_IMAGE:
            return _pull_failure(each)
        run = each.failure
        message = each.message if each.waiting in _NOT_CREATED else ""
        if run is not None and run.reason in _NOT_STARTED:
            message = run.message or each.message
        elif each.waiting not in _NOT_CREATED:
            continue
        text = f"container {each.name} cannot be created: {message or each.waiting}"
        return Failure(Cause.CREATE_CONTAINER_ERROR, Category.CREATE_CONTAINER, text, each.name)
    return None


def _not_pulled(listed: list[Container], memory: Memory, now: float, limits: Limits) -> Failure | None:
    if memory.pull_failed_at is None or now - memory.pull_failed_at < limits.image_pull:
        return None
    for each in listed:
        if each.waiting in _PULLING:
            return _pull_failure(each)
    return None


def _pull_failure(container: Container) -> Failure:
    text = f"cannot pull the image {container.image}: {container.message or container.waiting}"
    return Failure(Cause.IMAGE_PULL, Category.IMAGE_PULL, text, container.name)


def _unscheduled(pod: Pod, age: float, limits: Limits) -> Failure | None:
    scheduled = status.condition(pod, "PodScheduled")
    if status.node_of(pod) or age < limits.unscheduled:
        return None
    said = scheduled.message if scheduled is not None and scheduled.message else "the scheduler is silent"
    text = f"no node has room for it after {_time(limits.unscheduled)}: {said}"
    return Failure(Cause.NO_CAPACITY, Category.CAPACITY, text)


def _restarting(listed: list[Container], age: float, limits: Limits) -> Failure | None:
    if age < limits.restarting:
        return None
    for each in listed:
        if each.restarts < limits.restarts or (each.ready and each.running_since is not None):
            continue
        ends_init = each.is_init and not each.runs_along
        cause = Cause.INIT_CONTAINER_RESTART_LOOP if ends_init else Cause.CONTAINER_RESTART_LOOP
        category = Category.OUT_OF_MEMORY if _out_of_memory(each) else Category.CRASH
        text = f"container {each.name} was restarted {each.restarts} times; it {how_ended(each)}"
        return Failure(cause, category, text, each.name)
    return None


def _init_stuck(listed: list[Container], now: float, limits: Limits) -> Failure | None:
    for each in listed:
        since = each.running_since
        if each.is_init and not each.runs_along and since is not None and now - since > limits.init:
            text = f"container {each.name} has not ended after {_time(limits.init)}"
            return Failure(Cause.INIT_CONTAINER_STUCK, Category.INIT_STUCK, text, each.name)
    return None


def _not_ready(pod: Pod, memory: Memory, now: float, created: float, limits: Limits) -> Failure | None:
    ready, scheduled = status.condition(pod, "Ready"), status.condition(pod, "PodScheduled")
    if (ready is not None and ready.holds) or not status.node_of(pod):
        return None
    if memory.was_ready:
        since = (ready.since if ready is not None else None) or now
        limit, what = limits.not_ready_again, "not ready again"
    else:
        since = (scheduled.since if scheduled is not None else None) or created
        limit, what = limits.never_ready, "not ready"
    if now - since < limit:
        return None
    text = f"{what} after {_time(limit)}: {why_not_ready(pod)}"
    return Failure(Cause.DEGRADED_WORKER, Category.NOT_READY, text, _late(pod))


def _late(pod: Pod) -> str:
    """Return the container that a pod waits for: the worker's before the server's, which is ready with it."""
    found = [each.name for each in status.containers(pod) if not each.ready and each.runs_along]
    return UTILS if UTILS in found else next(iter(found), "")


def _stuck(pod: Pod, now: float) -> Failure | None:
    """Return why a pod that is being deleted is given up: its node does not answer any more."""
    until = status.seconds(pod["metadata"].get("deletionTimestamp")) or now
    if now - until < _STUCK_SECONDS:
        return None
    text = f"its node {status.node_of(pod)} does not end it and may be gone"
    return Failure(Cause.NOT_FOUND, Category.NODE_LOST, text)


def _out_of_memory(container: Container | None) -> bool:
    runs = () if container is None else (container.terminated, container.last)
    return any(run is not None and run.out_of_memory for run in runs)


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 7200 else f"{seconds / 3600:g} h"
