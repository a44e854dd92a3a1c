"""The WorkerService over gRPC (section 1): what a worker calls before and while it pulls."""

from __future__ import annotations

import logging
import time
from typing import Any, NoReturn

import grpc
from grpc.aio import ServicerContext as Context

from nvcf_gateway.errors import QueueError
from nvcf_gateway.queue import RequestQueue
from nvcf_gateway.registry import Registry
from nvcf_gateway.worker_tokens import InvalidWorkerToken, WorkerTokens
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from nvcf_proto.tokens import WorkerClaims

_log = logging.getLogger(__name__)


class WorkerService(nvcf_pb2_grpc.WorkerServicer):
    """ConnectOnce and ProvisionRegionalWorker; the other calls answer UNIMPLEMENTED."""

    def __init__(
        self,
        registry: Registry,
        queue: RequestQueue,
        tokens: WorkerTokens,
        region: str,
        regions: tuple[str, ...],
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._tokens = tokens
        self._region = region
        self._regions = regions

    async def ConnectOnce(  # noqa: N802 # the contract's name
        self, request: nvcf_pb2.WorkerConnect, context: Context[Any, Any]
    ) -> nvcf_pb2.WorkerConnectOnceResponse:
        """Check the worker, make sure it has a queue, give it a fresh token and the regions."""
        claims = await self._authorise(
            context,
            function_id=request.functionId,
            version_id=request.functionVersionId,
            instance_id=request.instanceId,
        )
        await self._ensure(context, claims.version_id, self._region)
        token, expires = self._tokens.issue(
            function_id=claims.function_id,
            version_id=claims.version_id,
            instance_id=claims.instance_id,
            nca_id=claims.nca_id,
            now=time.time(),
        )
        answer = nvcf_pb2.WorkerConnectOnceResponse(
            connectedRegion=self._region,
            otherRegions=[region for region in self._regions if region != self._region],
            nvcfWorkerToken=token,
        )
        answer.expiration.FromSeconds(int(expires))
        _log.info(
            "worker connected", extra={"instance_id": claims.instance_id, "version_id": claims.version_id}
        )
        return answer

    async def ProvisionRegionalWorker(  # noqa: N802
        self, request: nvcf_pb2.ProvisionWorkerRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.ProvisionWorkerResponse:
        """Make sure the version has a queue in the region."""
        claims = await self._authorise(
            context,
            function_id=request.functionId,
            version_id=request.functionVersionId,
            instance_id=request.instanceId,
        )
        if request.regionToProvision not in self._regions:
            await _abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"no region {request.regionToProvision[:64]!r}; there are {', '.join(self._regions)}",
            )
        await self._ensure(context, claims.version_id, request.regionToProvision, again=True)
        return nvcf_pb2.ProvisionWorkerResponse()

    async def _authorise(
        self, context: Context[Any, Any], *, function_id: str, version_id: str, instance_id: str
    ) -> WorkerClaims:
        token = _bearer(context)
        if token is None:
            await _abort(
                context, grpc.StatusCode.UNAUTHENTICATED, "metadata authorization: Bearer <token> is missing"
            )
        try:
            claims = self._tokens.verify(token, time.time())
        except InvalidWorkerToken as error:
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
        try:
            function_id, version_id = (
                parse_id(function_id, "functionId"),
                parse_id(version_id, "functionVersionId"),
            )
        except InvalidId as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not claims.covers(function_id=function_id, version_id=version_id, instance_id=instance_id):
            await _abort(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "the worker token is for another function or instance",
            )
        if self._registry.versions.get(version_id) is None:
            await _abort(context, grpc.StatusCode.NOT_FOUND, f"no version {version_id}")
        return claims

    async def _ensure(
        self, context: Context[Any, Any], version_id: str, region: str, *, again: bool = False
    ) -> None:
        try:
            await self._queue.ensure(version_id, region, again=again)
        except QueueError as error:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, str(error))


def _bearer(context: Context[Any, Any]) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return token.strip()
    return None


async def _abort(context: Context[Any, Any], code: grpc.StatusCode, detail: str) -> NoReturn:
    await context.abort(code, detail)
    raise AssertionError("abort always raises")
