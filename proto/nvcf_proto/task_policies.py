"""When a task may run again: retries, preemption, and the fence between two runs. Pure.

Two runs of a task never overlap. A run is over when its agent says how it ended, or that nothing of it is
left. If its agent is lost, nobody says so: then the lease of its worker decides. A worker with a lease ends
its task when the platform has not answered for LEASE_SECONDS, and the next run waits for FENCE_SECONDS.
"""

from __future__ import annotations

from nvcf_proto.leases import LEASE_GRACE_SECONDS, LEASE_SECONDS
from nvcf_proto.models import Instance
from nvcf_proto.models.tasks import RetryOn, Task, TaskStatus

FENCE_SECONDS = LEASE_SECONDS + LEASE_GRACE_SECONDS + 60.0
"""After this silence of its worker, nothing of a run goes on."""
MOST_PREEMPTIONS = 10
"""A task that was preempted so often is left in peace."""

# Ends that the process of a task has no part in, though there is an exit code.
_NOT_ITS_OWN = frozenset(("terminated", "not-connected", "lost"))


def may_retry(task: Task, cause: RetryOn) -> bool:
    """Return whether the policy of a task has it run again after such a failure."""
    policy = task.retry
    return policy is not None and cause in policy.on and task.retries < policy.limit


def may_be_preempted(task: Task) -> bool:
    """Return whether the present run of a task may be ended for others."""
    active = task.status in (TaskStatus.LAUNCHED, TaskStatus.RUNNING)
    return active and task.preemptible and task.stopping is None and task.preemptions < MOST_PREEMPTIONS


def has_lease(task: Task) -> bool:
    """Return whether the worker of a task has to end it when the platform is silent."""
    return task.preemptible or (task.retry is not None and RetryOn.INFRASTRUCTURE in task.retry.on)


def cause_of(instance: Instance) -> RetryOn:
    """Return what has ended an instance: its own process, or something else."""
    foreign = instance.exit_code is None or instance.category in _NOT_ITS_OWN
    return RetryOn.INFRASTRUCTURE if foreign else RetryOn.FAILURE


def is_certainly_over(task: Task, instance: Instance, now: float) -> bool:
    """Return whether nothing of a run whose instance has ended can go on."""
    if instance.exit_code is not None or instance.released_at is not None:
        return True
    if task.process is None:
        # The worker of a container cannot end it: only the agent can.
        return False
    stopping = task.stopping
    if stopping is not None and stopping.exits and now - stopping.at > FENCE_SECONDS:
        return True
    return has_lease(task) and _silence(task, instance, now) > FENCE_SECONDS


def stays_unknown(task: Task, instance: Instance, now: float) -> bool:
    """Return whether nobody will say whether a run of a container goes on: its agent was lost."""
    return task.process is None and _silence(task, instance, now) > FENCE_SECONDS


def _silence(task: Task, instance: Instance, now: float) -> float:
    signs = (
        task.last_heartbeat_at,
        task.started_at,
        task.launched_at,
        instance.acknowledged_at,
        instance.reported_at,
        instance.ready_at,
    )
    return now - max((each for each in signs if each is not None), default=now)
