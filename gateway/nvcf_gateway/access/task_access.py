"""Whether the worker of a task may still act: its token, and the order that the task has now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nvcf_gateway.access.worker_tokens import InvalidWorkerToken, WorkerTokens
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.registry import Registry
from nvcf_proto.icms.messages import instance_id_of
from nvcf_proto.icms.names import Workload
from nvcf_proto.models import Task
from nvcf_proto.secrets import task_secrets_path
from nvcf_proto.tokens import TASK_TOKEN_AUDIENCE, WorkerClaims


class SupersededRun(InvalidWorkerToken):
    """A good token of a run that is over: the task waits again, or another run of it was ordered."""


@dataclass(frozen=True)
class TaskAccess:
    """Issues the tokens of tasks' workers, and checks them. Function and version are the task's id."""

    tokens: WorkerTokens
    registry: Registry

    def token(self, task: Task, now: float) -> str:
        """Return a token for the worker of the task's present order."""
        return self.tokens.issue(
            function_id=task.id,
            version_id=task.id,
            instance_id=instance_id_of(task.request_id, workload=Workload.TASK),
            nca_id=task.nca_id,
            now=now,
            has_record=True,
            request_id=task.request_id,
            audience=TASK_TOKEN_AUDIENCE,
        )[0]

    def verify(self, token: str, now: float) -> Task:
        """Return the task of a good token. Raises SupersededRun, and otherwise InvalidWorkerToken."""
        claims = self.tokens.verify(token, now, TASK_TOKEN_AUDIENCE)
        task = self.registry.tasks.get(claims.version_id)
        if task is None:
            raise InvalidWorkerToken("the task does not exist any more")
        if not claims.request_id:
            raise InvalidWorkerToken("the token is of no order")
        if task.request_id != claims.request_id:
            raise SupersededRun("the token is of an order that the task does not have any more")
        return task

    async def authorize(
        self, token: str, task_id: str, now: float, refresh: Callable[[str], Awaitable[None]]
    ) -> Task:
        """Return the task of a call of its worker.

        The work of a run that is over is dropped, so an old copy of the record does not count: `refresh`
        brings the newest. Raises HttpProblem 401, 403, and 412 for a run that is over while the task goes on.
        """
        try:
            try:
                task = self.verify(token, now)
            except SupersededRun:
                await refresh(task_id)
                task = self.verify(token, now)
        except SupersededRun as error:
            raise HttpProblem(412, str(error)) from None
        except InvalidWorkerToken as error:
            raise HttpProblem(401, str(error)) from None
        if task_id != task.id:
            raise HttpProblem(403, "the token is for another task")
        return task

    def for_secrets(self, task: Task, instance_id: str, now: float) -> tuple[str, float]:
        """Return a token that reads the secrets of a task, and when it expires."""
        claims = WorkerClaims(
            instance_id, task.id, task.id, task.nca_id, 0.0, has_record=True, request_id=task.request_id
        )
        return self.tokens.for_secrets(claims, [task_secrets_path(task.id)], now)
