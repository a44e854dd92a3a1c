"""The service nvct.Worker over gRPC (protocol.md, section 12.4): what the worker of a task calls."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext as Context

from nvcf_gateway.access.task_access import TaskAccess
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.rpc.server import bearer, in_time
from nvcf_gateway.rpc.worker_service import artifact_files
from nvcf_gateway.tasks.store import TaskStore
from nvcf_proto import tasks
from nvcf_proto.models import RetryOn, Task, TaskStatus
from nvcf_proto.models.tasks import LONGEST_METADATA
from nvcf_proto.pb import nvcf_pb2, nvct_pb2, nvct_pb2_grpc
from nvcf_proto.tokens import may_be_instance_of

LONGEST_NAME = 190
_ENDS: dict[int, TaskStatus] = {
    nvct_pb2.COMPLETED: TaskStatus.COMPLETED,
    nvct_pb2.EXCEEDED_MAX_RUNTIME_DURATION: TaskStatus.EXCEEDED_MAX_RUNTIME_DURATION,
}
_FAILURES: dict[int, RetryOn] = {
    nvct_pb2.ERRORED: RetryOn.FAILURE,
    nvct_pb2.WORKER_TERMINATED: RetryOn.INFRASTRUCTURE,
}
_REASONS: dict[int, str] = {
    nvct_pb2.COMPLETED: "",
    nvct_pb2.ERRORED: "its worker reported a failure",
    nvct_pb2.WORKER_TERMINATED: "its worker was terminated",
    nvct_pb2.EXCEEDED_MAX_RUNTIME_DURATION: "its maximum run time is over",
}
_RUNS = (nvct_pb2.RUNNING, nvct_pb2.IN_PROGRESS)


@dataclass(frozen=True, slots=True, eq=False)
class TaskWorkerService(nvct_pb2_grpc.WorkerServicer):
    """Handlers of the calls. They raise HttpProblem, which the server turns into a gRPC status.

    A worker is heard even if its task is over: by the status in the response it learns that it has to end.
    """

    region: str
    access: TaskAccess
    store: TaskStore
    clock: Callable[[], float] = time.time

    async def Connect(  # noqa: N802 # the contract's name
        self, request: nvct_pb2.ConnectRequest, context: Context[Any, Any]
    ) -> nvct_pb2.ConnectResponse:
        """Note the worker's first sign of life. Raises HttpProblem 412 for a task that is over."""
        task = await self._authorize(context, request.taskId, request.instanceId)
        now = self.clock()
        changed = await self._change(task, lambda record: tasks.heard(record, now))
        if changed.status.is_over or changed.stopping is not None:
            raise HttpProblem(412, f"the task is {changed.status}, and its run has to end")
        return nvct_pb2.ConnectResponse(connectedRegion=self.region)

    async def SendHeartbeat(  # noqa: N802
        self, request: nvct_pb2.HeartbeatRequest, context: Context[Any, Any]
    ) -> nvct_pb2.TaskResponse:
        """Take a heartbeat with the worker's status."""
        task = await self._authorize(context, request.taskId, request.instanceId)
        return await self._apply(task, request.status, request.errorMessage)

    async def SendResultMetadata(  # noqa: N802
        self, request_iterator: AsyncIterator[nvct_pb2.ResultMetadataRequest], context: Context[Any, Any]
    ) -> nvct_pb2.TaskResponse:
        """Take progress and results, in order; the response has the status after the last one."""
        response = None
        async for request in in_time(request_iterator):
            response = await self._take_result(request, context)
        if response is None:
            raise HttpProblem(400, "the stream has no message")
        return response

    async def _take_result(
        self, request: nvct_pb2.ResultMetadataRequest, context: Context[Any, Any]
    ) -> nvct_pb2.TaskResponse:
        task = await self._authorize(context, request.taskId, request.instanceId)
        percent = request.percentComplete if request.HasField("percentComplete") else None
        if percent is not None and not 1 <= percent <= 100:
            raise HttpProblem(400, f"percentComplete is {percent}; expected 1 to 100")
        name = request.resultName
        if len(name) > LONGEST_NAME:
            raise HttpProblem(400, f"resultName is longer than {LONGEST_NAME} characters")
        metadata = request.metadata.body.decode(errors="replace")
        if len(metadata) > LONGEST_METADATA:
            raise HttpProblem(400, f"metadata is longer than {LONGEST_METADATA} characters")
        if name and not task.status.is_over:
            await self.store.add_result(task, name, metadata)
        error = request.errorDetails.detail or request.errorDetails.title
        return await self._apply(task, request.status, error, percent)

    async def GetArtifacts(  # noqa: N802
        self, request: nvct_pb2.ArtifactsRequest, context: Context[Any, Any]
    ) -> nvct_pb2.ArtifactsResponse:
        """Return the models and resources of the task, each as one file at its URI."""
        task = await self._authorize(context, request.taskId)
        artifacts = [
            nvct_pb2.ArtifactsResponse.Artifact(
                name=file.artifactName,
                version=file.artifactVersion,
                kind=nvct_pb2.ArtifactsResponse.Kind.Value(nvcf_pb2.ArtifactKind.Name(file.artifactKind)),
                files=[nvct_pb2.ArtifactsResponse.File(path=file.path, url=file.url)],
            )
            for file in artifact_files(task)
        ]
        return nvct_pb2.ArtifactsResponse(artifacts=artifacts)

    async def RefreshToken(  # noqa: N802
        self, request: nvct_pb2.TokenRequest, context: Context[Any, Any]
    ) -> nvct_pb2.TokenResponse:
        """Return a new token. Raises HttpProblem 412 for a worker that must have exited."""
        task = await self._authorize_present(context, request.taskId)
        return nvct_pb2.TokenResponse(token=self.access.token(task, self.clock()))

    async def RequestSecretCredentials(  # noqa: N802
        self, request: nvct_pb2.SecretCredentialsRequest, context: Context[Any, Any]
    ) -> nvct_pb2.SecretCredentialsResponse:
        """Return a token that reads the secrets of the task, and no others. Raises HttpProblem 412."""
        task = await self._authorize_present(context, request.taskId)
        token, expires = self.access.for_secrets(task, f"0-sr-{task.request_id}-task", self.clock())
        return nvct_pb2.SecretCredentialsResponse(token=token, expiration=Timestamp(seconds=int(expires)))

    async def _apply(
        self, task: Task, status: int, error: str, percent: int | None = None
    ) -> nvct_pb2.TaskResponse:
        now = self.clock()

        def change(record: Task) -> Task:
            known = tasks.heard(record, now, percent)
            if status in _RUNS:
                return tasks.running(known, now)
            if status in _FAILURES:
                return tasks.failed(known, _FAILURES[status], error or _REASONS[status], now, exits=True)
            if status in _ENDS:
                return tasks.ended(known, _ENDS[status], error or _REASONS[status], now)
            return known

        changed = await self._change(task, change)
        # The task goes on, but this run of it does not.
        shown = TaskStatus.ERRORED if changed.stopping is not None else changed.status
        return nvct_pb2.TaskResponse(taskId=task.id, executionStatus=shown.value)

    async def _change(self, task: Task, change: Callable[[Task], Task]) -> Task:
        superseded = False

        def of_this_run(record: Task) -> Task:
            # Another run may have been ordered since the token was checked.
            nonlocal superseded
            superseded = record.request_id != task.request_id
            return record if superseded else change(record)

        changed = await self.store.change(task.id, of_this_run)
        if changed is None:
            raise HttpProblem(404, f"no task {task.id}")
        if superseded:
            raise HttpProblem(412, "the run is over: the task waits again, or has another run")
        return changed

    async def _authorize_present(self, context: Context[Any, Any], task_id: str) -> Task:
        """Do as `_authorize`, but refuse a task that was over long ago: its token must not live on."""
        task = await self._authorize(context, task_id)
        if tasks.is_gone(task, self.clock()):
            raise HttpProblem(412, f"the task is {task.status}")
        return task

    async def _authorize(
        self, context: Context[Any, Any], task_id: str, instance_id: str | None = None
    ) -> Task:
        """Return the task of the caller's token. Raises HttpProblem 401, 403, 412 and 503."""
        task = await self.access.authorize(bearer(context), task_id, self.clock(), self.store.refresh)
        if instance_id is not None and not may_be_instance_of(instance_id, task.request_id):
            raise HttpProblem(403, "the token is for another instance")
        return task
