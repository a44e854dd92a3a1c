"""Client of the gRPC service nvct.Worker (protocol.md, section 12.4)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio

from nvcf_proto.environment import INSTANCE_ID, INSTANCE_TYPE, NVCT_FQDN_GRPC, NVCT_WORKER_TOKEN
from nvcf_proto.pb import nvct_pb2, nvct_pb2_grpc
from nvcf_worker.control.config import WITHOUT_PROXY, GrpcEndpoint, grpc_endpoint
from nvcf_worker.control.tls import grpc_roots
from nvcf_worker.errors import ConfigurationError, ControlError, RunOver
from nvcf_worker.tasks.progress_rules import Report
from nvcf_worker.tasks.settings import TASK_ID

CALL_SECONDS = 10.0
REFRESH_SECONDS = 30 * 60.0
"""Age at which a token is replaced; it lives for hours."""
_PERMANENT = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)
OVER = frozenset(
    (
        nvct_pb2.COMPLETED,
        nvct_pb2.ERRORED,
        nvct_pb2.CANCELED,
        nvct_pb2.EXCEEDED_MAX_RUNTIME_DURATION,
        nvct_pb2.EXCEEDED_MAX_QUEUED_DURATION,
    )
)
"""Statuses in a response by which a task's worker learns that it has to end."""


@dataclass
class TaskPlatform:
    """Calls for one task. Each opens a channel of its own, for they are rare.

    They raise ControlError, and RunOver where the run has to end.
    """

    endpoint: GrpcEndpoint
    token: str
    task_id: str
    instance_id: str
    instance_type: str = ""
    _fetched_at: float = 0.0

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> TaskPlatform | None:
        """Return the platform that the environment names, None without one. Raises ConfigurationError."""
        address = environ.get(NVCT_FQDN_GRPC, "").strip()
        if not address:
            return None
        for name in (NVCT_WORKER_TOKEN, TASK_ID, INSTANCE_ID):
            if not environ.get(name):
                raise ConfigurationError(f"{name} is missing, which a task of a platform needs")
        return cls(
            grpc_endpoint(address),
            environ[NVCT_WORKER_TOKEN],
            environ[TASK_ID],
            environ[INSTANCE_ID],
            environ.get(INSTANCE_TYPE, ""),
            time.monotonic(),
        )

    async def connect(self) -> None:
        """Say that the worker is there. Refused for a task that is over."""
        request = nvct_pb2.ConnectRequest(instanceId=self.instance_id, taskId=self.task_id)
        async with self._stub("Connect") as stub:
            await stub.Connect(request, metadata=self._metadata(), timeout=CALL_SECONDS)

    async def heartbeat(
        self, status: nvct_pb2.ExecutionStatus.ValueType, error: str = ""
    ) -> nvct_pb2.ExecutionStatus.ValueType:
        """Send a heartbeat and return the task's status."""
        await self._renew()
        request = nvct_pb2.HeartbeatRequest(
            instanceId=self.instance_id,
            taskId=self.task_id,
            instanceType=self.instance_type,
            status=status,
            errorMessage=error or None,
        )
        async with self._stub("SendHeartbeat") as stub:
            answer = await stub.SendHeartbeat(request, metadata=self._metadata(), timeout=CALL_SECONDS)
        return _status(answer.executionStatus)

    async def report(self, report: Report) -> nvct_pb2.ExecutionStatus.ValueType:
        """Send a report of progress and return the task's status."""
        request = nvct_pb2.ResultMetadataRequest(
            taskId=self.task_id,
            instanceId=self.instance_id,
            instanceType=self.instance_type,
            status=nvct_pb2.RUNNING,
            percentComplete=report.percent,
            resultName=report.name,
            metadata=nvct_pb2.ResultMetadataRequest.Metadata(body=report.metadata.encode()),
        )

        async def one() -> AsyncIterator[nvct_pb2.ResultMetadataRequest]:
            yield request

        async with self._stub("SendResultMetadata") as stub:
            answer = await stub.SendResultMetadata(one(), metadata=self._metadata(), timeout=CALL_SECONDS)
        return _status(answer.executionStatus)

    async def _renew(self) -> None:
        if time.monotonic() - self._fetched_at < REFRESH_SECONDS:
            return
        request = nvct_pb2.TokenRequest(taskId=self.task_id)
        async with self._stub("RefreshToken") as stub:
            answer = await stub.RefreshToken(request, metadata=self._metadata(), timeout=CALL_SECONDS)
        self.token, self._fetched_at = answer.token or self.token, time.monotonic()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)

    @asynccontextmanager
    async def _stub(self, call: str) -> AsyncIterator[nvct_pb2_grpc.WorkerAsyncStub]:
        if self.endpoint.tls:
            credentials = grpc.ssl_channel_credentials(grpc_roots())
            channel = grpc.aio.secure_channel(self.endpoint.target, credentials, WITHOUT_PROXY)
        else:
            channel = grpc.aio.insecure_channel(self.endpoint.target, WITHOUT_PROXY)
        try:
            async with channel:
                yield nvct_pb2_grpc.WorkerStub(channel)
        except grpc.aio.AioRpcError as error:
            reason = error.details() or "no reason given"
            text = f"{call} failed: {error.code().name}: {reason}"
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise RunOver(text, permanent=True) from error
            raise ControlError(text, permanent=error.code() in _PERMANENT) from error


def _status(name: str) -> nvct_pb2.ExecutionStatus.ValueType:
    """Return the status of a name; by one that is not known nothing ends."""
    known = dict(nvct_pb2.ExecutionStatus.items())
    return known.get(name, nvct_pb2.RUNNING)
