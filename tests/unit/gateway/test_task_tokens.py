"""Whose token may speak for which task, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nvcf_gateway.access.signing_keys import SigningKeys
from nvcf_gateway.access.task_access import TaskAccess
from nvcf_gateway.access.worker_tokens import WorkerTokens
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.registry import Registry
from nvcf_gateway.rpc.task_service import TaskWorkerService
from nvcf_gateway.tasks.store import TaskStore
from nvcf_proto import tasks
from nvcf_proto.ids import new_id
from nvcf_proto.models import DeploymentSpecification, ProcessSource, Task, TaskStatus
from nvcf_proto.models.containers import Artifact
from nvcf_proto.pb import nvct_pb2

NOW = 1_800_000_000.0


def a_running_task() -> Task:
    task = Task(
        id=new_id(),
        nca_id="account",
        name="training",
        created_at=NOW,
        updated_at=NOW,
        specification=DeploymentSpecification(),
        process=ProcessSource("/python", "/task.py", "/"),
    )
    return tasks.running(tasks.launched(task, new_id(), "c", "cluster", NOW), NOW)


class Refreshed:
    """A store whose records are the newest already, or become so by `newest` before the next change."""

    def __init__(self) -> None:
        self.newest: Task | None = None

    async def refresh(self, task_id: str) -> None:
        pass

    async def change(self, task_id: str, change: Callable[[Task], Task]) -> Task | None:
        assert self.newest is not None
        self.newest = change(self.newest)
        return self.newest


class Workers:
    """The service, with tasks of its own."""

    def __init__(self, folder: Path) -> None:
        self.tasks: dict[str, Task] = {}
        self.tokens = WorkerTokens(SigningKeys(folder / "signing.pem"))
        registry = cast(Registry, SimpleNamespace(tasks=self.tasks))
        self.access = TaskAccess(self.tokens, registry)
        self.now = NOW
        self.store = Refreshed()
        self.service = TaskWorkerService("local", self.access, cast(TaskStore, self.store), lambda: self.now)

    def token(self, task: Task) -> str:
        self.tasks[task.id] = task
        return self.access.token(task, self.now)

    def context(self, token: str) -> Any:
        metadata = (("authorization", f"Bearer {token}"),)
        return cast(Any, SimpleNamespace(invocation_metadata=lambda: metadata))

    async def refresh(self, token: str, task_id: str) -> str:
        context = self.context(token)
        return (await self.service.RefreshToken(nvct_pb2.TokenRequest(taskId=task_id), context)).token


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(tmp_path)


async def test_a_token_is_renewed_for_its_task(workers: Workers) -> None:
    task = a_running_task()
    token = await workers.refresh(workers.token(task), task.id)
    assert workers.access.verify(token, NOW) is task


async def test_a_worker_gets_the_models_and_resources_of_its_task(workers: Workers) -> None:
    task = a_running_task().replace(
        models=(Artifact("llama", "1", "https://models/a%20b.bin"),),
        resources=(Artifact("words", "2", "s3://bucket/words.txt"),),
    )
    context = workers.context(workers.token(task))
    found = await workers.service.GetArtifacts(nvct_pb2.ArtifactsRequest(taskId=task.id), context)
    kinds = nvct_pb2.ArtifactsResponse
    assert [(each.name, each.version, each.kind, each.files[0].path) for each in found.artifacts] == [
        ("llama", "1", kinds.MODEL, "a b.bin"),
        ("words", "2", kinds.RESOURCE, "words.txt"),
    ]
    with pytest.raises(HttpProblem):
        await workers.service.GetArtifacts(nvct_pb2.ArtifactsRequest(taskId=new_id()), context)


def another_task(workers: Workers, _: Task) -> str:
    return workers.token(a_running_task())


def an_earlier_order(workers: Workers, task: Task) -> str:
    token = workers.token(task.replace(request_id=new_id()))
    workers.tasks[task.id] = task
    return token


def a_deleted_task(workers: Workers, task: Task) -> str:
    token = workers.token(task)
    del workers.tasks[task.id]
    return token


def a_function(workers: Workers, task: Task) -> str:
    return workers.tokens.issue(
        function_id=task.id,
        version_id=task.id,
        instance_id=f"0-sr-{task.request_id}-task",
        nca_id=task.nca_id,
        now=NOW,
        request_id=task.request_id,
    )[0]


def no_order(workers: Workers, task: Task) -> str:
    token = workers.token(task.replace(request_id="", status=TaskStatus.QUEUED))
    workers.now += 1
    return token


@pytest.mark.parametrize(
    ("made", "status"),
    [(another_task, 403), (an_earlier_order, 412), (a_deleted_task, 401), (a_function, 401), (no_order, 401)],
)
async def test_a_token_of_anything_else_is_refused(
    workers: Workers, made: Callable[[Workers, Task], str], status: int
) -> None:
    task = a_running_task()
    workers.tasks[task.id] = task
    token = made(workers, task)
    with pytest.raises(HttpProblem) as refused:
        await workers.refresh(token, task.id)
    assert refused.value.status == status


async def test_an_old_copy_of_the_record_refuses_no_run_and_keeps_none_alive(workers: Workers) -> None:
    """For gRPC calls and for uploads alike."""
    old = a_running_task()
    new = old.replace(request_id=new_id())
    earlier, present = workers.token(old), workers.token(new)
    workers.tasks[old.id] = old

    async def refresh(task_id: str) -> None:
        workers.tasks[task_id] = new

    assert await workers.access.authorize(present, old.id, NOW, refresh) is new
    with pytest.raises(HttpProblem) as refused:
        await workers.access.authorize(earlier, old.id, NOW, refresh)
    assert refused.value.status == 412


async def test_the_token_of_a_task_that_was_over_long_ago_is_not_renewed(workers: Workers) -> None:
    task = tasks.ended(a_running_task(), TaskStatus.COMPLETED, "", NOW)
    token = workers.token(task)
    assert await workers.refresh(token, task.id)
    workers.now += task.grace + tasks.EXIT_SECONDS + 1.0
    with pytest.raises(HttpProblem) as refused:
        await workers.refresh(token, task.id)
    assert refused.value.status == 412


async def test_a_run_that_is_replaced_while_it_reports_changes_nothing(workers: Workers) -> None:
    task = a_running_task()
    context = workers.context(workers.token(task))
    instance_id = f"0-sr-{task.request_id}-task"
    newest = workers.store.newest = task.replace(request_id=new_id(), last_heartbeat_at=NOW - 100)
    connect = nvct_pb2.ConnectRequest(taskId=task.id, instanceId=instance_id)
    with pytest.raises(HttpProblem) as connected:
        await workers.service.Connect(connect, context)
    beat = nvct_pb2.HeartbeatRequest(taskId=task.id, instanceId=instance_id, status=nvct_pb2.RUNNING)
    with pytest.raises(HttpProblem) as heard:
        await workers.service.SendHeartbeat(beat, context)
    assert (connected.value.status, heard.value.status) == (412, 412)
    assert workers.store.newest == newest
    # A run that is the task's is heard.
    workers.store.newest = task
    assert (await workers.service.Connect(connect, context)).connectedRegion == "local"
    assert (await workers.service.SendHeartbeat(beat, context)).executionStatus == "RUNNING"
