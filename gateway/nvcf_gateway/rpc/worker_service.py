"""The Worker service over gRPC (protocol.md, section 1.2): what a worker calls before and while it pulls."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext as Context

from nvcf_gateway.access.worker_access import DELETED, NOT_DEPLOYED, RevokedWorkerToken, WorkerAccess
from nvcf_gateway.access.worker_tokens import InvalidWorkerToken
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import HttpProblem, broker_errors
from nvcf_gateway.objects.assets import Assets
from nvcf_gateway.objects.large_results import LargeResults
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.registry import Registry
from nvcf_gateway.rpc.server import bearer, checked_id, in_time
from nvcf_proto.models import FunctionVersion, Task
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from nvcf_proto.secrets import function_secrets_path
from nvcf_proto.tokens import WorkerClaims

_log = logging.getLogger(__name__)


# By 403 a worker knows that it may only be early.
_STATUSES = {NOT_DEPLOYED: 403, DELETED: 404}


def artifact_files(owner: FunctionVersion | Task) -> list[nvcf_pb2.StreamedArtifactFile]:
    """Return the files of models and resources: each is one file, called as in its URI."""
    kinds = ((owner.models, nvcf_pb2.MODEL), (owner.resources, nvcf_pb2.RESOURCE))
    return [
        nvcf_pb2.StreamedArtifactFile(
            artifactName=each.name,
            artifactVersion=each.version or "",
            artifactKind=kind,
            path=PurePosixPath(unquote(urlsplit(each.uri).path)).name or each.name,
            url=each.uri,
        )
        for found, kind in kinds
        for each in found
        if each.uri
    ]


class _WorkerRequest(Protocol):
    """The fields that all requests of a worker share."""

    functionId: str  # noqa: N815 # the contract's name
    functionVersionId: str  # noqa: N815 # the contract's name


@dataclass(frozen=True, slots=True, eq=False)
class WorkerService(nvcf_pb2_grpc.WorkerServicer):
    """Handlers of a worker's calls.

    They raise HttpProblem, which the server turns into a gRPC status.
    """

    config: GatewayConfig
    registry: Registry
    queue: RequestQueue
    access: WorkerAccess
    assets: Assets
    large: LargeResults

    async def ConnectOnce(  # noqa: N802 # the contract's name
        self, request: nvcf_pb2.WorkerConnect, context: Context[Any, Any]
    ) -> nvcf_pb2.WorkerConnectOnceResponse:
        """Check the worker, ensure that it has a queue, and return a new token and the regions."""
        claims = self._authorize(context, request, request.instanceId)
        with broker_errors():
            await self.queue.ensure(claims.version_id, self.config.region)
        token, expires = self.access.renewed(claims, request.instanceId, time.time())
        _log.info(
            "worker connected", extra={"instance_id": request.instanceId, "version_id": claims.version_id}
        )
        return nvcf_pb2.WorkerConnectOnceResponse(
            connectedRegion=self.config.region,
            otherRegions=[region for region in self.config.regions if region != self.config.region],
            nvcfWorkerToken=token,
            expiration=Timestamp(seconds=int(expires)),
        )

    async def ProvisionRegionalWorker(  # noqa: N802
        self, request: nvcf_pb2.ProvisionWorkerRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.ProvisionWorkerResponse:
        """Ensure that the version has a queue in the region."""
        claims = self._authorize(context, request, request.instanceId)
        if request.regionToProvision not in self.config.regions:
            regions = ", ".join(self.config.regions)
            detail = f"there is no region {request.regionToProvision[:64]!r}; the regions are {regions}"
            raise HttpProblem(400, detail)
        with broker_errors():
            await self.queue.ensure(claims.version_id, request.regionToProvision, again=True)
        return nvcf_pb2.ProvisionWorkerResponse()

    async def RefreshLargeUploadCredentials(  # noqa: N802
        self, request: nvcf_pb2.RefreshLargeUploadCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.RefreshLargeUploadCredentialsResponse:
        """Return a new URL for the upload of a large result."""
        work = await self._work(self._authorize(context, request), request.requestId)
        url = self.large.upload_url(work.requestId)
        return nvcf_pb2.RefreshLargeUploadCredentialsResponse(largeResponseUrl=url)

    async def RequestLargeResponseDownloadCredentials(  # noqa: N802
        self, request: nvcf_pb2.LargeResponseDownloadCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.LargeResponseDownloadCredentialsResponse:
        """Return the URL to which the caller of a large result is redirected."""
        work = await self._work(self._authorize(context, request), request.requestId)
        url = self.large.download_url(work.requestId)
        return nvcf_pb2.LargeResponseDownloadCredentialsResponse(largeResponseDownloadUrl=url)

    async def RefreshAssetDownloadCredentials(  # noqa: N802
        self,
        request_iterator: AsyncIterator[nvcf_pb2.RefreshAssetDownloadCredentialsRequest],
        context: Context[Any, Any],
    ) -> AsyncIterator[nvcf_pb2.RefreshAssetDownloadCredentialsResponse]:
        """Return new URLs for input assets, one response for each request."""
        work = nvcf_pb2.WorkerInvokeFunctionRequest()
        async for request in in_time(request_iterator):
            claims = self._authorize(context, request)
            asset_id = checked_id(request.assetId, "assetId")
            # One request may have many assets.
            if work.requestId != request.requestId:
                work = await self._work(claims, request.requestId)
            given = any(each.assetId == asset_id for each in work.inputAssetReference)
            content_type = await self.assets.content_type(asset_id, work.ncaId) if given else None
            if content_type is None:
                raise HttpProblem(404, f"no asset {asset_id}")
            response = nvcf_pb2.RefreshAssetDownloadCredentialsResponse()
            response.inputAssetReference.assetId = asset_id
            response.inputAssetReference.reference = self.assets.download_url(asset_id)
            response.inputAssetReference.contentType = content_type
            yield response

    async def MultipartLargeUploadCredentials(  # noqa: N802
        self, request: nvcf_pb2.MultipartLargeUploadCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.MultipartLargeUploadCredentialsResponse:
        """Refuse: results of any size are uploaded to `largeResponseUrl` in one piece."""
        self._authorize(context, request)
        raise HttpProblem(412, "there is no S3 store here: upload to largeResponseUrl")

    async def RequestArtifacts(  # noqa: N802
        self, request: nvcf_pb2.ArtifactsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.ArtifactsResponse:
        """Return the models and resources of the worker's version, each as one file at its URI."""
        artifacts = [
            nvcf_pb2.ArtifactsResponse.Artifact(
                name=file.artifactName,
                version=file.artifactVersion,
                kind=file.artifactKind,
                files=[nvcf_pb2.ArtifactsResponse.Artifact.File(path=file.path, url=file.url)],
            )
            for file in artifact_files(self._version(context))
        ]
        return nvcf_pb2.ArtifactsResponse(artifacts=artifacts)

    async def StreamArtifacts(  # noqa: N802
        self, request: nvcf_pb2.ArtifactsRequest, context: Context[Any, Any]
    ) -> AsyncIterator[nvcf_pb2.StreamedArtifactFile]:
        """Stream the same, one message a file."""
        for file in artifact_files(self._version(context)):
            yield file

    async def RequestInstanceCredentials(  # noqa: N802
        self, request: nvcf_pb2.InstanceCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.InstanceCredentialsResponse:
        """Return a signed token that names the worker's instance."""
        token, expiration = self._assertion(self._authorize(context, request, request.instanceId), "instance")
        return nvcf_pb2.InstanceCredentialsResponse(instanceCredentialsToken=token, expiration=expiration)

    async def RequestSecretCredentials(  # noqa: N802
        self, request: nvcf_pb2.SecretCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.SecretCredentialsResponse:
        """Return a token that reads the secrets of the worker's version, and no others."""
        claims = self._authorize(context, request)
        path = function_secrets_path(claims.function_id, claims.version_id)
        token, expires = self.access.tokens.for_secrets(claims, [path], time.time())
        return nvcf_pb2.SecretCredentialsResponse(
            secretCredentialsToken=token, expiration=Timestamp(seconds=int(expires))
        )

    async def RequestFunctionMetadataCredentials(  # noqa: N802
        self, request: nvcf_pb2.FunctionMetadataCredentialsRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.FunctionMetadataCredentialsResponse:
        """Return a signed token that names the function; workers hand it to the function itself."""
        token, expiration = self._assertion(self._authorize(context, request), "function-metadata")
        return nvcf_pb2.FunctionMetadataCredentialsResponse(
            functionMetadataCredentialsToken=token, expiration=expiration
        )

    async def _work(self, claims: WorkerClaims, request_id: str) -> nvcf_pb2.WorkerInvokeFunctionRequest:
        """Return a request that is queued for the worker's version or in flight.

        A worker gets links to its objects and to no others. Raises HttpProblem 400 and 503, and 404 for the
        request of another version just as for one that does not exist.
        """
        request_id = checked_id(request_id, "requestId")
        with broker_errors():
            found = await self.queue.find(claims.version_id, request_id)
        if found is None:
            raise HttpProblem(404, f"version {claims.version_id} has no request {request_id}, or no longer")
        work = nvcf_pb2.WorkerInvokeFunctionRequest.FromString(found.data)
        work.requestId = request_id
        return work

    def _version(self, context: Context[Any, Any]) -> FunctionVersion:
        """Return the version that the worker's token is for, whatever the request names."""
        version = self.registry.versions.get(self._authenticate(context).version_id)
        if version is None:
            raise HttpProblem(404, "the version does not exist")
        return version

    def _assertion(self, claims: WorkerClaims, purpose: str) -> tuple[str, Timestamp]:
        token, expires = self.access.tokens.assertion(claims, purpose, time.time())
        return token, Timestamp(seconds=int(expires))

    def _authorize(
        self, context: Context[Any, Any], request: _WorkerRequest, instance_id: str | None = None
    ) -> WorkerClaims:
        claims = self._authenticate(context)
        function_id = checked_id(request.functionId, "functionId")
        version_id = checked_id(request.functionVersionId, "functionVersionId")
        if not claims.covers(function_id=function_id, version_id=version_id, instance_id=instance_id):
            raise HttpProblem(403, "the worker token is for another function or instance")
        if self.registry.versions.get(version_id) is None:
            raise HttpProblem(404, f"no version {version_id}")
        return claims

    def _authenticate(self, context: Context[Any, Any]) -> WorkerClaims:
        try:
            return self.access.verify(bearer(context), time.time())
        except RevokedWorkerToken as error:
            raise HttpProblem(_STATUSES.get(error.reason, 401), str(error)) from None
        except InvalidWorkerToken as error:
            raise HttpProblem(401, str(error)) from None
