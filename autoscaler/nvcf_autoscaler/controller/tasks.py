"""Launches queued tasks, follows launched ones, and ends what they leave. Only the leader does.

Each step is one guarded write of the task's record, and what follows from the record is made again if it is
missing: a replica that dies in between leaves nothing that the next leader does not finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from nvcf_autoscaler.controller import plan
from nvcf_autoscaler.controller.actuation import Actuator
from nvcf_autoscaler.controller.cache import Cache
from nvcf_autoscaler.controller.lease import Lease
from nvcf_autoscaler.controller.mapping import requirement_of
from nvcf_autoscaler.controller.task_claims import (
    function_claims,
    function_lacks,
    preemptible_tasks,
    staying,
    task_claims,
)
from nvcf_autoscaler.placement.place import Cluster
from nvcf_autoscaler.placement.preemption import Claim, preemptions
from nvcf_autoscaler.placement.tasks import QueuedTask, TaskPlace, plan_tasks, reserved
from nvcf_autoscaler.placement.usage import OVER, Usage, Usages, usage_of
from nvcf_autoscaler.placement.view import devices_of, group_instances
from nvcf_broker.errors import BrokerError, KeyExistsError, RevisionConflictError
from nvcf_broker.requests import raise_if_cancelled
from nvcf_proto import tasks
from nvcf_proto.icms.request_ids import new_request_id
from nvcf_proto.models import Instance, Task, TaskStatus
from nvcf_proto.models.tasks import LONGEST_REASON, SPECIFICATION_ID

_log = logging.getLogger(__name__)

ROUND_SECONDS = 1.0
LEAST_PAUSE = 0.01
RETRY_SECONDS = 0.5
MOST_LAUNCHES = 64
"""Of one round; more follow at once."""
MOST_REASONS = 64
"""Queued tasks whose reason to wait is written anew in one round."""
GONE = "its instance ended, and nothing is known of how"
# A text is written again only if it differs otherwise.
_NUMBERS = re.compile(r"\d+")


@dataclass(frozen=True)
class _Queued:
    """A queued task, and what it requires."""

    task: Task
    wanted: QueuedTask

    @classmethod
    def of(cls, task: Task) -> Self:
        requirement = replace(
            requirement_of(task.specification, task.nca_id), process=task.process is not None
        )
        wanted = QueuedTask(
            task.id, task.nca_id, task.created_at, task.specification, requirement, task.priority
        )
        return cls(task, wanted)

    def at(self, cluster_ids: frozenset[str]) -> QueuedTask:
        """Return what it requires now: where its last run has left results, while that cluster is there."""
        previous = self.task.previous
        if previous is None or self.task.process is None or previous.cluster_id not in cluster_ids:
            return self.wanted
        here = replace(self.wanted.requirement, clusters=(previous.cluster_id,))
        return replace(self.wanted, requirement=here)


@dataclass
class TaskController:
    """Reconciles all tasks. `acting` is held by whoever takes room in clusters.

    `lacking` returns how many instances of functions' versions found no room.
    """

    cache: Cache
    actuator: Actuator
    lease: Lease
    acting: asyncio.Lock
    lacking: Callable[[], Mapping[str, int]] = dict
    silent_after: float = tasks.SILENT_AFTER_SECONDS
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    _queued: dict[str, _Queued] = field(default_factory=dict)
    """What the queued tasks of the last round require, by id: thousands may wait unchanged."""

    def wake(self) -> None:
        """Look at all tasks soon, because something happened to one of them."""
        self.woken.set()

    async def run(self) -> None:
        """Reconcile tasks until cancelled. Does nothing while another replica leads."""
        while True:
            raise_if_cancelled()
            self.woken.clear()
            pause, again = ROUND_SECONDS, False
            began = time.monotonic()
            if self.lease.held:
                try:
                    again = await self.round(time.time())
                except BrokerError as error:
                    _log.warning("tasks are looked at again: %s", error)
                    pause = RETRY_SECONDS
                except Exception:  # noqa: BLE001 # a fault about tasks must not end the scaling of functions
                    _log.exception("tasks were not looked at")
            took = time.monotonic() - began
            if not again:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self.woken.wait()
            # Many changes come together. A long queue takes at most half of the time.
            await asyncio.sleep(max(LEAST_PAUSE, took))

    async def round(self, now: float) -> bool:
        """Look once at all tasks. Return whether more can be launched at once. Raises BrokerError."""
        clusters = self._clusters()
        queued: list[Task] = []
        for task in self.cache.tasks.values():
            if not self.lease.held:
                return False
            with _apart(task):
                if task.status is TaskStatus.QUEUED:
                    changed = tasks.after_time(task, None, now)
                    if changed is not task:
                        await self._write(task, changed)
                    elif task.not_before <= now:
                        queued.append(task)
                elif task.request_id:
                    await self._follow(task, clusters, now)
        await self._end_orphans()
        self._queued = self._read_queued(queued)
        claims = function_claims(self.cache, self.lacking())
        return await self._launch(clusters, claims, now) if queued or claims else False

    def _read_queued(self, queued: list[Task]) -> dict[str, _Queued]:
        """Return what tasks require, by id; of tasks that are as they were it is known already."""
        found: dict[str, _Queued] = {}
        for task in queued:
            known = self._queued.get(task.id)
            found[task.id] = known if known is not None and known.task is task else _Queued.of(task)
        return found

    async def _follow(self, task: Task, clusters: tuple[Cluster, ...], now: float) -> None:
        """Bring a task that has an order, and its instance, one step further."""
        instance = self.cache.instances.get(task.instance_key)
        if instance is None:
            if not task.status.is_over:
                await self._without_instance(task, clusters, now)
            return
        changed = tasks.after_instance(task, instance, now)
        if changed is task:
            changed = self._after_time(task, instance, now)
        if instance.state in OVER:
            changed = tasks.explained(changed, instance)
        if changed is not task:
            await self._write(task, changed)
        if instance.state in OVER:
            return
        if tasks.must_end(changed, now) and instance.draining_since is None:
            stopping = changed.stopping
            reason = f"its task is {changed.status}" if stopping is None else stopping.reason
            await self.actuator.apply(changed, plan.Terminate((instance,), reason))
            return
        await self._keep_house(changed, instance, clusters, now)

    async def _without_instance(self, task: Task, clusters: tuple[Cluster, ...], now: float) -> None:
        if self.cache.instances.is_deleted(task.instance_key):
            await self._write(task, tasks.ended(task, TaskStatus.ERRORED, GONE, now))
        elif task.status is TaskStatus.LAUNCHED:
            # The replica that launched it died, or the record was lost: the agent knows whether it has it.
            there = [each for each in clusters if each.id == task.cluster_id]
            await self.actuator.create_for_task(task, devices_of(task.specification, there))
        else:
            changed = self._after_time(task, None, now)
            if changed is not task:
                await self._write(task, changed)

    def _after_time(self, task: Task, instance: Instance | None, now: float) -> Task:
        return tasks.after_time(
            task, instance, now, listened=self.lease.held_for, silent_after=self.silent_after
        )

    async def _keep_house(
        self, task: Task, instance: Instance, clusters: tuple[Cluster, ...], now: float
    ) -> None:
        """Order again, send a termination again, or give up, as for an instance of a function."""
        requirement = requirement_of(task.specification, task.nca_id)
        groups = group_instances(
            now,
            [instance],
            {SPECIFICATION_ID: requirement},
            clusters,
            self.lease.held_for,
            self.cache.clusters.is_deleted,
        )
        for action in plan.housekeeping(now, groups, clusters, self.lease.held_for):
            await self.actuator.apply(task, action)

    async def _end_orphans(self) -> None:
        """End instances whose task was deleted. One whose task is merely unknown may have lost its record."""
        for key in list(self.cache.task_keys):
            task_id = key.partition(".")[0]
            instance = self.cache.instances.get(key)
            if instance is None or instance.state in OVER or instance.draining_since is not None:
                continue
            if task_id not in self.cache.tasks and self.cache.tasks.is_deleted(task_id):
                with contextlib.suppress(RevisionConflictError):
                    await self.actuator.apply(None, plan.Terminate((instance,), "its task was deleted"))

    # launching

    async def _launch(self, clusters: tuple[Cluster, ...], claims: list[Claim], now: float) -> bool:
        """Launch what has room. `claims` are those of functions, which go first."""
        async with self.acting:
            usages = usage_of(now, self.cache.all_instances(), clusters)
            alive = frozenset(each.id for each in clusters if now - each.heard_at <= each.timings.lost_after)
            queued = [each.at(alive) for each in self._queued.values()]
            lacks = function_lacks(self.cache, self.lacking())
            functions = [each for each in self.cache.all_instances() if not each.is_task]
            found = plan_tasks(
                now,
                queued,
                clusters,
                reserved(usages, lacks, clusters),
                lasting=reserved(usage_of(now, functions, clusters), lacks, clusters),
                held=self._held(),
                busy_gpus=frozenset(each.specification.gpu for each in claims),
                most=MOST_LAUNCHES,
            )
            for each in found.places:
                if not self.lease.held:
                    return False
                task = self._queued[each.task_id].task
                with _apart(task):
                    await self._launch_one(task, each, now)
            taken = _with(usages, found.places, self._queued)
            await self._preempt(claims, clusters, taken, now)
            await self._preempt(task_claims(found.refusals, queued), clusters, taken, now)
        await self._note_reasons(found.refusals)
        return len(found.places) == MOST_LAUNCHES

    async def _preempt(
        self, claims: Iterable[Claim], clusters: Sequence[Cluster], usages: Usages, now: float
    ) -> None:
        """End runs of preemptible tasks for what waits. What ends already is waited for."""
        running = list(preemptible_tasks(self.cache))
        if not running or not self.lease.held:
            return
        for each in preemptions(now, claims, running, clusters, staying(now, usages, clusters, self.cache)):
            task = self.cache.tasks.get(each.task_id)
            if task is not None:
                with _apart(task):
                    changed = tasks.preempted(task, f"{each.claim.name} needs its place", now)
                    if changed is not task:
                        await self._write(task, changed)

    async def _launch_one(self, task: Task, where: TaskPlace, now: float) -> None:
        request_id = new_request_id(task.id, SPECIFICATION_ID)
        label = self.cache.cluster_label(where.cluster_id)
        launched = tasks.launched(task, request_id, where.cluster_id, label, now)
        await self._write(task, launched)
        await self.actuator.create_for_task(launched, where.devices)
        _log.info("task %s (%s) is launched in cluster %s", task.id, task.name, label)

    async def _note_reasons(self, refusals: dict[str, str]) -> None:
        """Write why tasks wait, for people. Seconds and counts alone are no news."""
        written = 0
        for task_id, reason in refusals.items():
            task = self._queued[task_id].task
            if _says_the_same(reason, task.waiting_for or ""):
                continue
            with contextlib.suppress(RevisionConflictError):
                await self._write(task, task.replace(waiting_for=reason[:LONGEST_REASON]))
            written += 1
            if written == MOST_REASONS:
                return

    def _held(self) -> dict[str, int]:
        """Return how many GPUs the tasks of each account hold."""
        held: Counter[str] = Counter()
        for key in self.cache.task_keys:
            instance, task = self.cache.instances.get(key), self.cache.tasks.get(key.partition(".")[0])
            if instance is not None and task is not None and instance.state not in OVER:
                held[task.nca_id] += instance.devices
        return held

    def _clusters(self) -> tuple[Cluster, ...]:
        """Return all clusters; a task is given up only after as much silence as its worker may keep."""
        return tuple(
            replace(
                each,
                timings=replace(each.timings, lost_after=max(each.timings.lost_after, self.silent_after)),
            )
            for each in self.cache.placement_clusters()
        )

    async def _write(self, before: Task, after: Task) -> None:
        """Write what was made of a record. Raises RevisionConflictError if it is another one now."""
        entry = self.cache.tasks.entry(before.id)
        if entry is None or entry.value is not before:
            raise RevisionConflictError(f"task {before.id} was changed meanwhile")
        await self.cache.tasks.update(before.id, after, entry.revision)
        if before.status is not after.status:
            _log.info("task %s (%s): %s", after.id, after.name, after.events[-1].message)


def _with(usages: Usages, places: Iterable[TaskPlace], queued: dict[str, _Queued]) -> Usages:
    """Return what is in use with what was launched just now."""
    found = {key: Usage(list(usage.sizes), usage.reported) for key, usage in usages.items()}
    for each in places:
        gpu = queued[each.task_id].wanted.specification.gpu
        found.setdefault((each.cluster_id, gpu), Usage()).sizes.append(each.devices)
    return found


@contextlib.contextmanager
def _apart(task: Task) -> Iterator[None]:
    """Keep a fault about one task from the others. One of the broker concerns all."""
    try:
        yield
    except (RevisionConflictError, KeyExistsError):
        # Whoever was faster wakes the loop by its change.
        return
    except BrokerError:
        raise
    except Exception:  # noqa: BLE001 # the next round tries again
        _log.exception("task %s was not looked at", task.id)


def _says_the_same(one: str, other: str) -> bool:
    return one == other or _NUMBERS.sub("", one) == _NUMBERS.sub("", other)
