"""The controller of tasks: one task that fails does not keep others from running."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, Generic, TypeVar, cast

import pytest

from nvcf_autoscaler.controller import plan
from nvcf_autoscaler.controller.actuation import Actuator
from nvcf_autoscaler.controller.cache import Cache
from nvcf_autoscaler.controller.lease import Lease
from nvcf_autoscaler.controller.tasks import TaskController
from nvcf_autoscaler.placement.place import Capacity, Cluster
from nvcf_broker.errors import BrokerUnavailableError
from nvcf_broker.records import Entry
from nvcf_proto import tasks as state_machine
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    DeploymentSpecification,
    Instance,
    InstanceState,
    ProcessSource,
    Task,
    TaskStatus,
)
from nvcf_proto.models.tasks import PreviousRun

R = TypeVar("R")
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


class Records(Generic[R]):
    """A mirror in memory."""

    def __init__(self, **records: R) -> None:
        self.entries = {key: Entry(each, 1) for key, each in records.items()}

    def values(self) -> list[R]:
        return [each.value for each in self.entries.values()]

    def get(self, key: str) -> R | None:
        found = self.entries.get(key)
        return None if found is None else found.value

    def entry(self, key: str) -> Entry[R] | None:
        return self.entries.get(key)

    def keys(self) -> list[str]:
        return list(self.entries)

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def is_deleted(self, key: str) -> bool:
        return False

    async def update(self, key: str, value: R, revision: int) -> None:
        self.entries[key] = Entry(value, revision + 1)


class Failing:
    """An actuator that fails for one task; it keeps the others that it has launched."""

    def __init__(self, bad: str, error: Exception) -> None:
        self.bad, self.error = bad, error
        self.launched, self.terminated = list[str](), list[str]()

    async def create_for_task(self, task: Task, devices: int) -> None:
        if task.name == self.bad:
            raise self.error
        self.launched.append(task.name)

    async def apply(self, task: Task, action: plan.Action) -> None:
        assert isinstance(action, plan.Terminate)
        self.terminated.append(task.name)


def an_instance(task: Task) -> Instance:
    return Instance(
        id=f"0-sr-{task.request_id}-task",
        function_id=task.id,
        version_id=task.id,
        cluster_id="c",
        state=InstanceState.RUNNING,
        updated_at=NOW,
        created_at=NOW,
        specification_id="task",
        gpu="CPU",
        request_id=task.request_id,
        acknowledged_at=NOW,
        reported_at=NOW,
        is_task=True,
    )


def a_controller(
    actuator: Failing, *tasks: Task, room: int = 8, instances: tuple[Instance, ...] = ()
) -> TaskController:
    capacity = Capacity("CPU", "process", room - len(instances), room, gpus_per_instance=1)
    clusters = (Cluster("c", "local", NOW, (capacity,), heartbeat_at=NOW + 1.0, runs_processes=True),)
    cache = SimpleNamespace(
        tasks=Records(**{each.id: each for each in tasks}),
        instances=Records(**{each.key: each for each in instances}),
        deployments=Records(),
        versions=Records(),
        clusters=Records(),
        task_keys={each.key for each in instances},
        placement_clusters=lambda: clusters,
        all_instances=lambda: iter(instances),
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


def a_running_task(number: int, **fields: Any) -> Task:
    launched = state_machine.launched(a_task(number, **fields), new_id(), "c", "c", NOW)
    return state_machine.running(launched, NOW)


async def test_a_task_of_higher_priority_takes_the_place_of_one_preemptible_task() -> None:
    running = [a_running_task(number, preemptible=number < 2) for number in range(3)]
    urgent = a_task(3, priority=5)
    actuator = Failing("", ValueError())
    instances = tuple(map(an_instance, running))
    controller = a_controller(actuator, *running, urgent, room=3, instances=instances)
    for _ in range(3):
        await controller.round(NOW + 9.0)
    stopping = [each.name for each in controller.cache.tasks.values() if each.stopping is not None]
    assert (len(stopping), set(actuator.terminated)) == (1, set(stopping))
    assert stopping[0] in ("task-0", "task-1")
    (reason,) = {each.stopping.reason for each in controller.cache.tasks.values() if each.stopping}
    assert "a task of priority 5" in reason


async def test_processes_and_containers_go_to_clusters_that_run_them() -> None:
    pool = Capacity("CPU", "ON-PREM.CPU_1x", 8, 8, 1)
    own = Capacity("CPU", "process", 8, 8, 1)
    spec = DeploymentSpecification(instance_type="ON-PREM.CPU_1x")
    for process, clusters, places in (
        (True, {"c": own, "k": pool}, {"c": "task-0"}),
        (False, {"c": pool, "k": pool}, {"k": "task-0"}),
    ):
        changes: dict[str, Any] = {} if process else {"process": None, "specification": spec}
        actuator = Failing("", ValueError())
        task = a_task(0, container_image=None if process else "image:1", **changes)
        controller = a_controller(actuator, task)
        both = tuple(
            Cluster(name, "local", NOW, (capacity,), runs_processes=name == "c")
            for name, capacity in clusters.items()
        )
        controller.cache.placement_clusters = lambda both=both: both  # type: ignore[method-assign,misc]
        await controller.round(NOW + 9.0)
        (launched,) = controller.cache.tasks.values()
        assert {launched.cluster_id: launched.name} == places


async def test_a_task_waits_for_the_cluster_that_has_its_results_while_that_one_is_there() -> None:
    for home, places in (("c", []), ("gone", ["task-0"])):
        previous = PreviousRun("0-sr-x-task", home)
        actuator = Failing("", ValueError())
        controller = a_controller(actuator, a_task(0, previous=previous), room=1)
        full, other = (
            Cluster(name, "local", NOW, (Capacity("CPU", "process", room, 1, 1),), runs_processes=True)
            for name, room in (("c", 0), ("d", 1))
        )
        controller.cache.placement_clusters = lambda both=(full, other): both  # type: ignore[method-assign,misc]
        await controller.round(NOW + 9.0)
        assert actuator.launched == places
