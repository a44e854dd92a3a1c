"""The controller of tasks: one task that fails does not keep others from running."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nvcf_autoscaler.controller.actuation import Actuator
from nvcf_autoscaler.controller.cache import Cache
from nvcf_autoscaler.controller.lease import Lease
from nvcf_autoscaler.controller.tasks import TaskController
from nvcf_autoscaler.placement.place import Capacity, Cluster
from nvcf_broker.errors import BrokerUnavailableError
from nvcf_broker.records import Entry
from nvcf_proto.ids import new_id
from nvcf_proto.models import DeploymentSpecification, ProcessSource, Task, TaskStatus

NOW = 1_800_000_000.0


def a_task(number: int, **fields: Any) -> Task:
    task = Task(
        id=new_id(),
        nca_id="account",
        name=f"task-{number}",
        created_at=NOW + number,
        updated_at=NOW,
        specification=DeploymentSpecification(),
        process=ProcessSource("/python", "/task.py", "/"),
    )
    return task.replace(**fields)


class Records:
    """A mirror in memory."""

    def __init__(self, *records: Task) -> None:
        self.entries = {each.id: Entry(each, 1) for each in records}

    def values(self) -> list[Task]:
        return [each.value for each in self.entries.values()]

    def get(self, key: str) -> Task | None:
        found = self.entries.get(key)
        return None if found is None else found.value

    def entry(self, key: str) -> Entry[Task] | None:
        return self.entries.get(key)

    def is_deleted(self, key: str) -> bool:
        return False

    async def update(self, key: str, value: Task, revision: int) -> None:
        self.entries[key] = Entry(value, revision + 1)


class Failing:
    """An actuator that fails for one task; it keeps the others that it has launched."""

    def __init__(self, bad: str, error: Exception) -> None:
        self.bad, self.error, self.launched = bad, error, list[str]()

    async def create_for_task(self, task: Task, devices: int) -> None:
        if task.name == self.bad:
            raise self.error
        self.launched.append(task.name)


def a_controller(actuator: Failing, *tasks: Task, room: int = 8) -> TaskController:
    capacity = Capacity("CPU", "process", room, room, gpus_per_instance=1)
    clusters = (Cluster("c", "local", NOW, (capacity,)),)
    cache = SimpleNamespace(
        tasks=Records(*tasks),
        instances=Records(),
        deployments=Records(),
        versions=Records(),
        task_keys=set(),
        placement_clusters=lambda: clusters,
        backend=lambda _: "process",
        all_instances=lambda: iter(()),
        cluster_label=str,
    )
    lease = cast(Lease, SimpleNamespace(held=True, held_for=1e9))
    return TaskController(cast(Cache, cache), cast(Actuator, actuator), lease, asyncio.Lock())


@pytest.mark.parametrize("status", [TaskStatus.QUEUED, TaskStatus.LAUNCHED])
async def test_a_task_that_fails_does_not_keep_others_from_running(status: TaskStatus) -> None:
    order = {} if status is TaskStatus.QUEUED else {"request_id": new_id(), "cluster_id": "c"}
    bad = a_task(0, status=status, **order)
    actuator = Failing("task-0", ValueError("not a good record"))
    await a_controller(actuator, bad, a_task(1), a_task(2)).round(NOW + 9.0)
    assert actuator.launched == ["task-1", "task-2"]


async def test_an_unavailable_broker_ends_the_round() -> None:
    actuator = Failing("task-0", BrokerUnavailableError("away"))
    with pytest.raises(BrokerUnavailableError):
        await a_controller(actuator, a_task(0), a_task(1)).round(NOW + 9.0)
    assert actuator.launched == []


async def test_a_reason_to_wait_is_written_once() -> None:
    waiting = a_task(0)
    controller = a_controller(Failing("", ValueError()), waiting, room=0)
    for _ in range(3):
        await controller.round(NOW + 9.0)
    entry = controller.cache.tasks.entry(waiting.id)
    assert entry is not None
    assert (entry.revision, entry.value.status, bool(entry.value.waiting_for)) == (2, TaskStatus.QUEUED, True)
