"""The WorkerService over gRPC (section 1): what a worker calls before and while it pulls."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc.aio import ServicerContext as Context

from nvcf_gateway.access.worker_tokens import InvalidWorkerToken, WorkerTokens
from nvcf_gateway.errors import QueueError
from nvcf_gateway.objects.assets import Assets
from nvcf_gateway.objects.large_results import LargeResults
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.registry import Registry
from nvcf_gateway.rpc.refusals import abort, bearer
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from nvcf_proto.tokens import WorkerClaims

_log = logging.getLogger(__name__)


class WorkerService(nvcf_pb2_grpc.WorkerServicer):
    """What a worker calls. Artifacts are part of the image here: there are none to fetch."""

    def __init__(
        self,
        registry: Registry,
        queue: RequestQueue,
        tokens: WorkerTokens,
        region: str,
        regions: tuple[str, ...],
        assets: Assets,
        large: LargeResults,
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._tokens = tokens
        self._region = region
        self._regions = regions
        self._assets = assets
        self._large = large

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
            await abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"no region {request.regionToProvision[:64]!r}; there are {', '.join(self._regions)}",
            )
        await self._ensure(context, claims.version_id, request.regionToProvision, again=True)
        return nvcf_pb2.ProvisionWorkerResponse()

    async def RefreshLargeUploadCredentials(  # noqa: N802
        self, request: nvcf_pb2.RefreshLargeUploadCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.RefreshLargeUploadCredentialsResponse:
        """A fresh link for the upload of a large result."""
        await self._authorise(context, function_id=request.functionId, version_id=request.functionVersionId)
        url = self._large.upload_url(await _request_id(request.requestId, context))
        return nvcf_pb2.RefreshLargeUploadCredentialsResponse(largeResponseUrl=url)

    async def RequestLargeResponseDownloadCredentials(  # noqa: N802
        self, request: nvcf_pb2.LargeResponseDownloadCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.LargeResponseDownloadCredentialsResponse:
        """The link that the caller of a large result is sent to."""
        await self._authorise(context, function_id=request.functionId, version_id=request.functionVersionId)
        url = self._large.download_url(await _request_id(request.requestId, context))
        return nvcf_pb2.LargeResponseDownloadCredentialsResponse(largeResponseDownloadUrl=url)

    async def RefreshAssetDownloadCredentials(  # noqa: N802
        self,
        request_iterator: AsyncIterator[nvcf_pb2.RefreshAssetDownloadCredentialsRequest],
        context: Context[Any, Any],
    ) -> AsyncIterator[nvcf_pb2.RefreshAssetDownloadCredentialsResponse]:
        """Fresh links for input assets, one answer for each question."""
        async for request in request_iterator:
            await self._authorise(
                context, function_id=request.functionId, version_id=request.functionVersionId
            )
            asset_id = await _request_id(request.assetId, context, "assetId")
            content_type = await self._assets.content_type(asset_id)
            if content_type is None:
                await abort(context, grpc.StatusCode.NOT_FOUND, f"no asset {asset_id}")
            answer = nvcf_pb2.RefreshAssetDownloadCredentialsResponse()
            answer.inputAssetReference.assetId = asset_id
            answer.inputAssetReference.reference = self._assets.link(asset_id)
            answer.inputAssetReference.contentType = content_type
            yield answer

    async def MultipartLargeUploadCredentials(  # noqa: N802
        self, request: nvcf_pb2.MultipartLargeUploadCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.MultipartLargeUploadCredentialsResponse:
        """Refused: results are uploaded to `largeResponseUrl` in one piece, whatever their size."""
        await self._authorise(context, function_id=request.functionId, version_id=request.functionVersionId)
        detail = "there is no S3 store here: upload to largeResponseUrl"
        await abort(context, grpc.StatusCode.FAILED_PRECONDITION, detail)

    async def RequestArtifacts(  # noqa: N802
        self, request: nvcf_pb2.ArtifactsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.ArtifactsResponse:
        """No artifacts."""
        await self._bearer(context)
        return nvcf_pb2.ArtifactsResponse()

    async def StreamArtifacts(  # noqa: N802
        self, request: nvcf_pb2.ArtifactsRequest, context: Context[Any, Any]
    ) -> AsyncIterator[nvcf_pb2.StreamedArtifactFile]:
        """No artifacts: the stream ends at once."""
        await self._bearer(context)
        files: tuple[nvcf_pb2.StreamedArtifactFile, ...] = ()
        for file in files:
            yield file

    async def RequestInstanceCredentials(  # noqa: N802
        self, request: nvcf_pb2.InstanceCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.InstanceCredentialsResponse:
        """A signed statement of which instance the worker is."""
        claims = await self._authorise(
            context,
            function_id=request.functionId,
            version_id=request.functionVersionId,
            instance_id=request.instanceId,
        )
        token, expires = self._tokens.assertion(claims, "instance", time.time())
        answer = nvcf_pb2.InstanceCredentialsResponse(instanceCredentialsToken=token)
        answer.expiration.FromSeconds(int(expires))
        return answer

    async def RequestSecretCredentials(  # noqa: N802
        self, request: nvcf_pb2.SecretCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.SecretCredentialsResponse:
        """A signed statement for a store of secrets."""
        claims = await self._authorise(
            context, function_id=request.functionId, version_id=request.functionVersionId
        )
        token, expires = self._tokens.assertion(claims, "secrets", time.time())
        answer = nvcf_pb2.SecretCredentialsResponse(secretCredentialsToken=token)
        answer.expiration.FromSeconds(int(expires))
        return answer

    async def RequestFunctionMetadataCredentials(  # noqa: N802
        self, request: nvcf_pb2.FunctionMetadataCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.FunctionMetadataCredentialsResponse:
        """A signed statement of which function it is; workers hand it to the function itself."""
        claims = await self._authorise(
            context, function_id=request.functionId, version_id=request.functionVersionId
        )
        token, expires = self._tokens.assertion(claims, "function-metadata", time.time())
        answer = nvcf_pb2.FunctionMetadataCredentialsResponse(functionMetadataCredentialsToken=token)
        answer.expiration.FromSeconds(int(expires))
        return answer

    async def _authorise(
        self, context: Context[Any, Any], *, function_id: str, version_id: str, instance_id: str | None = None
    ) -> WorkerClaims:
        claims = await self._bearer(context)
        try:
            function_id, version_id = (
                parse_id(function_id, "functionId"),
                parse_id(version_id, "functionVersionId"),
            )
        except InvalidId as error:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not claims.covers(function_id=function_id, version_id=version_id, instance_id=instance_id):
            await abort(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                "the worker token is for another function or instance",
            )
        if self._registry.versions.get(version_id) is None:
            await abort(context, grpc.StatusCode.NOT_FOUND, f"no version {version_id}")
        return claims

    async def _bearer(self, context: Context[Any, Any]) -> WorkerClaims:
        token = bearer(context)
        if token is None:
            await abort(
                context, grpc.StatusCode.UNAUTHENTICATED, "metadata authorization: Bearer <token> is missing"
            )
        try:
            return self._tokens.verify(token, time.time())
        except InvalidWorkerToken as error:
            await abort(context, grpc.StatusCode.UNAUTHENTICATED, str(error))

    async def _ensure(
        self, context: Context[Any, Any], version_id: str, region: str, *, again: bool = False
    ) -> None:
        try:
            await self._queue.ensure(version_id, region, again=again)
        except QueueError as error:
            await abort(context, grpc.StatusCode.UNAVAILABLE, str(error))


async def _request_id(text: str, context: Context[Any, Any], what: str = "requestId") -> str:
    try:
        return parse_id(text, what)
    except InvalidId as error:
        await abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
