"""Records of tasks in the broker: created within the quotas of accounts, changed with their revision."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from nvcf_broker.errors import BrokerError, KeyExistsError, RevisionConflictError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_gateway.errors import HttpProblem, StoreUnavailable
from nvcf_gateway.management.backends import CONTAINERS, PROCESS, permits
from nvcf_gateway.management.resources import stored, update
from nvcf_gateway.quotas.limits import Quota
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.owners import Owner
from nvcf_gateway.secrets.store import SecretStore
from nvcf_proto import tasks
from nvcf_proto.ids import new_id
from nvcf_proto.models import Task, TaskResults
from nvcf_proto.models.tasks import TaskResult

_log = logging.getLogger(__name__)

ROOM_SHARE = 4
DEFAULT_ROOM = 256 * 1024 * 1024
ATTEMPTS = 5
TIDY_SECONDS = 60.0
CHANGE_TIMEOUT = 0.5


async def tasks_room(requests: Requester) -> int:
    """Return how many bytes the tasks of all accounts may take: a quarter of the broker account."""
    limit = (await JetStream(requests).account_info()).limit
    return DEFAULT_ROOM if limit is None else min(DEFAULT_ROOM, limit // ROOM_SHARE)


class TaskStore:
    """Tasks, their results and their secrets."""

    def __init__(self, registry: Registry, secrets: SecretStore, usage: Usage, room: int) -> None:
        self._registry = registry
        self._secrets = secrets
        self._usage = usage
        self._room = room

    def require_room(self, account: str, count: int) -> None:
        """Raise HttpProblem 507 unless so many more tasks fit."""
        self._usage.require(account, Quota.TASKS, count)
        if self._is_full():
            raise HttpProblem(507, f"all accounts together may have {self._room // 2**20} MiB of tasks")

    def _is_full(self) -> bool:
        return self._registry.task_index.size > self._room

    def check_clusters(self, task: Task) -> None:
        """Raise HttpProblem 400 if no known cluster that the task names can run it, now or later."""
        known = (each for each in self._registry.clusters.values() if each.serves(task.nca_id))
        permitted = [each for each in known if permits(task.specification, each)]
        is_process = task.process is not None
        if permitted and all((each.backend == PROCESS) != is_process for each in permitted):
            names = ", ".join(sorted(each.label for each in permitted))
            field, wanted = ("process", PROCESS) if is_process else ("containerImage", CONTAINERS)
            detail = f"{field}: needs a cluster of the backend {wanted!r}; there is only {names}"
            raise HttpProblem(400, detail, field=field)

    async def create(self, task: Task, secrets: Mapping[str, Any], by: str) -> Task:
        """Create a task with its secrets; one with that id, which the same request made, is returned.

        Raises HttpProblem 400, 409, 501, 503 and 507.
        """
        mirror = self._registry.tasks
        try:
            known = await mirror.refresh(task.id)
            if known is not None:
                return known.value
            if await mirror.was_deleted(task.id):
                raise HttpProblem(409, "the task of this key was deleted: use another key")
            # Before the task, so that it never starts without them.
            await self._secrets.merge(Owner.task(task), secrets, by)
            await mirror.create(task.id, task)
        except KeyExistsError:
            found = await mirror.refresh(task.id)
            if found is None:
                raise StoreUnavailable("the task is being made by another call, try again") from None
            return found.value
        except BrokerError as error:
            raise StoreUnavailable(str(error)) from None
        return task

    async def refresh(self, task_id: str) -> None:
        """Read the newest record of a task. Raises HttpProblem 503."""
        await stored(self._registry.tasks.refresh(task_id))

    async def change(self, task_id: str, change: Callable[[Task], Task]) -> Task | None:
        """Apply a change to the newest record; None without one. Raises HttpProblem 409 and 503."""
        return await update(self._registry.tasks, task_id, change)

    async def add_result(self, task: Task, name: str, metadata: str) -> None:
        """Add a result. Raises HttpProblem 409 and 503.

        While the tasks of all accounts fill their room, only the name of a task's newest result is kept.
        """
        mirror, full = self._registry.task_results, self._is_full()
        result = TaskResult(new_id(), time.time(), name, "" if full else metadata)
        for _ in range(ATTEMPTS):
            entry = mirror.entry(task.id)
            before = entry.value if entry is not None and not full else TaskResults(task.id, task.nca_id)
            try:
                if entry is None:
                    await mirror.create(task.id, before.adding(result))
                else:
                    await mirror.update(task.id, before.adding(result), entry.revision)
            except (RevisionConflictError, KeyExistsError):
                await mirror.wait_change(CHANGE_TIMEOUT)
            except BrokerError as error:
                raise StoreUnavailable(str(error)) from None
            else:
                return
        raise HttpProblem(409, "the results are being changed by others, try again")

    async def tidy(self, now: float) -> None:
        """Remove tasks that were over long ago, and results without a task. Raises HttpProblem."""
        for task in self._registry.tasks.values():
            if task.ended_at is not None and now - task.ended_at > tasks.RETENTION_SECONDS:
                await self.delete(task, "retention")
        for task_id in self._registry.task_results.keys():  # noqa: SIM118 # a copy
            if self._registry.tasks.is_deleted(task_id):
                await stored(self._registry.task_results.delete(task_id))

    async def keep_tidy(self) -> None:
        """Do so now and then, until cancelled. Several gateways may at the same time."""
        while True:
            await asyncio.sleep(TIDY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311
            try:
                await self.tidy(time.time())
            except HttpProblem as problem:
                _log.info("old tasks are removed later: %s", problem)

    async def delete(self, task: Task, by: str) -> None:
        """Remove a task with all that belongs to it. Raises HttpProblem 409 and 503."""
        await stored(self._registry.tasks.delete(task.id))
        await stored(self._registry.task_results.delete(task.id))
        await self._secrets.remove(Owner.task(task), by)
