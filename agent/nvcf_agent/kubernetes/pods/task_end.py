"""How a task in a pod has ended, from the pod's status alone. Pure; times are Unix seconds.

The exit code of the task's container decides. What the node, the API server or the kernel says of the pod
goes before: a task that was told to end for the sake of its node is not complete, whatever its exit code.
"""

from dataclasses import dataclass

from nvcf_agent.kubernetes.pods import observe, status
from nvcf_agent.kubernetes.pods.containers import TASK, UTILS
from nvcf_agent.kubernetes.pods.observe import Failure
from nvcf_agent.kubernetes.pods.status import Container, Pod, Termination
from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause

MAX_RUNTIME_EXIT = 124
"""Exit code of a worker, and of `timeout`, for a task whose run time is over."""
# So long a worker that is late may still report the progress of a task that has ended.
_WORKER_SECONDS = 60.0


@dataclass(frozen=True)
class TaskEnd:
    """The end of a task. `failure` is None for one that is complete.

    `exit_code` is that of the task, or of its worker if that has ended it. `runs`: the task itself still
    runs, and gets its grace period.
    """

    exit_code: int | None = None
    failure: Failure | None = None
    runs: bool = False


def is_task(pod: Pod) -> bool:
    """Return whether a pod is of a task."""
    return any(each["name"] == TASK for each in pod["spec"]["containers"])


def has_begun(pod: Pod) -> bool:
    """Return whether a task runs, or has run."""
    container = _container(pod, TASK)
    return container is not None and (container.running_since is not None or container.terminated is not None)


def end_of_task(pod: Pod, now: float) -> TaskEnd | None:
    """Return how a task has ended; None if it has not, or if something else is wrong with its pod.

    The end waits for the worker, which may have to report the last progress.
    """
    run = _own_end(pod)
    worker = _container(pod, UTILS)
    if run is not None:
        waits = worker is not None and worker.terminated is None and not worker.ready
        if waits and now - (run.finished_at or now) < _WORKER_SECONDS:
            return None
        if worker is not None and _ended_first(worker, run):
            return _ended_by_worker(worker, worker.terminated or run, runs=False)
        return _ended(pod, run)
    if worker is None or worker.terminated is None or status.is_going(pod) or _is_disrupted(pod):
        return None
    return _ended_by_worker(worker, worker.terminated, runs=True)


def _ended_first(worker: Container, run: Termination) -> bool:
    """Return whether a task failed only because its node ended it after its worker."""
    end = worker.terminated
    if not run.is_failure or run.out_of_memory or end is None or not end.is_failure:
        return False
    return (end.finished_at or 0.0) < (run.finished_at or 0.0)


def end_of_gone_task(pod: Pod) -> TaskEnd:
    """Return how a task has ended whose pod is gone, but not by the agent; `pod` is what was last seen."""
    run = _own_end(pod)
    return TaskEnd(failure=observe.end_of(pod)) if run is None else _ended(pod, run)


def _own_end(pod: Pod) -> Termination | None:
    """Return how the task's container ended, unless somebody told it to."""
    container = _container(pod, TASK)
    run = container.terminated if container is not None else None
    if run is None or _is_disrupted(pod):
        return None
    if not status.is_going(pod):
        return run
    metadata = pod["metadata"]
    until = status.seconds(metadata["deletionTimestamp"]) or 0.0
    told_at = until - float(metadata.get("deletionGracePeriodSeconds") or 0)
    return run if run.finished_at is not None and run.finished_at < told_at else None


def _is_disrupted(pod: Pod) -> bool:
    disrupted = status.condition(pod, "DisruptionTarget")
    return bool((pod.get("status") or {}).get("reason")) or (disrupted is not None and disrupted.holds)


def _ended(pod: Pod, run: Termination) -> TaskEnd:
    if not run.is_failure:
        return TaskEnd(0)
    container = _container(pod, TASK)
    how = observe.how_ended(container) if container is not None else ""
    if run.exit_code == MAX_RUNTIME_EXIT and _container(pod, UTILS) is None:
        # In library mode this is the worker's word.
        how = "its maximum run time is over"
    category = Category.OUT_OF_MEMORY if run.out_of_memory else Category.CRASH
    failure = Failure(Cause.FAILED, category, f"the task {how}", TASK)
    # A code of 0 with a bad reason is no success.
    return TaskEnd(run.exit_code or None, failure)


def _ended_by_worker(worker: Container, run: Termination, *, runs: bool) -> TaskEnd:
    if not run.is_failure:
        return TaskEnd(0, runs=runs)
    if run.exit_code == MAX_RUNTIME_EXIT:
        failure = Failure(Cause.FAILED, Category.UNKNOWN, "its maximum run time is over", UTILS)
        return TaskEnd(MAX_RUNTIME_EXIT, failure, runs=runs)
    text = f"its worker {observe.how_ended(worker)}"
    return TaskEnd(None, Failure(Cause.FAILED, Category.UNKNOWN, text, UTILS), runs=runs)


def _container(pod: Pod, name: str) -> Container | None:
    return next((each for each in status.containers(pod) if each.name == name), None)
