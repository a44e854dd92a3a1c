"""Client of the gRPC service Worker (protocol.md, section 1.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio

from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from nvcf_worker.control.config import WITHOUT_PROXY, GrpcEndpoint, WorkerConfig, grpc_endpoint
from nvcf_worker.control.tls import grpc_roots
from nvcf_worker.errors import ConfigurationError, ControlError

CALL_TIMEOUT = 10.0
CONNECT_TIMEOUT = 30.0
"""Longer than other calls: ConnectOnce creates queues in each region."""

_PERMANENT = ("UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED")


@dataclass(frozen=True)
class Connected:
    """Response to ConnectOnce. `expires_at` is a Unix time in seconds; None if the platform sent none."""

    region: str
    other_regions: tuple[str, ...]
    token: str
    expires_at: float | None

    @property
    def regions(self) -> tuple[str, ...]:
        """All regions to pull from, the preferred one first, without duplicates."""
        return tuple(dict.fromkeys((self.region, *(name for name in self.other_regions if name))))


class WorkerService:
    """Calls the service Worker. Calls are rare, so each opens and closes its own channel.

    token: returns the newest worker token.
    """

    def __init__(self, config: WorkerConfig, token: Callable[[], str]) -> None:
        self._config = config
        self._token = token
        self._version = {"functionId": config.function_id, "functionVersionId": config.version_id}

    async def connect_once(self, token: str) -> Connected:
        """Exchange `token` for a new one and learn the regions. Raises ControlError."""
        request = nvcf_pb2.WorkerConnect(instanceId=self._config.instance_id, **self._version)
        async with self._stub("ConnectOnce") as stub:
            response = await stub.ConnectOnce(request, metadata=_bearer(token), timeout=CONNECT_TIMEOUT)
        if not response.connectedRegion:
            raise ControlError("ConnectOnce returned no region", permanent=False)
        return Connected(
            region=response.connectedRegion,
            other_regions=tuple(response.otherRegions),
            # A platform that issues no new token accepts the old one again.
            token=response.nvcfWorkerToken or token,
            expires_at=_unix_time(response),
        )

    async def provision(self, region: str) -> None:
        """Ask for the stream and consumer of this version in `region`. Raises ControlError."""
        request = nvcf_pb2.ProvisionWorkerRequest(
            instanceId=self._config.instance_id, regionToProvision=region, **self._version
        )
        async with self._stub("ProvisionRegionalWorker") as stub:
            await stub.ProvisionRegionalWorker(request, metadata=_bearer(self._token()), timeout=CALL_TIMEOUT)

    async def artifacts(self) -> nvcf_pb2.ArtifactsResponse:
        """Return the models and resources of the version. Raises ControlError."""
        request = nvcf_pb2.ArtifactsRequest(**self._version)
        async with self._stub("RequestArtifacts") as stub:
            return await stub.RequestArtifacts(request, metadata=_bearer(self._token()), timeout=CALL_TIMEOUT)

    async def refresh_upload(self, request_id: str, api: str) -> str:
        """Return a new upload URL for a large result. Raises ControlError.

        api: directResponseUrl of the request, because only the request's own region knows it; empty: the
        service that the worker is registered with.
        """
        request = nvcf_pb2.RefreshLargeUploadCredentialsRequest(requestId=request_id, **self._version)
        async with self._stub("RefreshLargeUploadCredentials", api) as stub:
            response = await stub.RefreshLargeUploadCredentials(
                request, metadata=_bearer(self._token()), timeout=CALL_TIMEOUT
            )
        return response.largeResponseUrl

    async def refresh_asset(self, request_id: str, asset_id: str, api: str) -> str:
        """Return a new download URL of an input asset; `api` as for `refresh_upload`. Raises ControlError."""
        request = nvcf_pb2.RefreshAssetDownloadCredentialsRequest(
            requestId=request_id, assetId=asset_id, **self._version
        )
        name = "RefreshAssetDownloadCredentials"
        async with self._stub(name, api) as stub:
            call = stub.RefreshAssetDownloadCredentials(
                iter([request]), metadata=_bearer(self._token()), timeout=CALL_TIMEOUT
            )
            async for response in call:
                return response.inputAssetReference.reference
        raise ControlError(f"{name} returned no response", permanent=False)

    async def download_url(self, request_id: str, nca_id: str) -> str:
        """Return the URL at which the caller finds an uploaded large result. Raises ControlError."""
        request = nvcf_pb2.LargeResponseDownloadCredentialsRequest(
            requestId=request_id, ncaId=nca_id, **self._version
        )
        async with self._stub("RequestLargeResponseDownloadCredentials") as stub:
            response = await stub.RequestLargeResponseDownloadCredentials(
                request, metadata=_bearer(self._token()), timeout=CALL_TIMEOUT
            )
        return response.largeResponseDownloadUrl

    @asynccontextmanager
    async def _stub(self, call: str, api: str = "") -> AsyncIterator[nvcf_pb2_grpc.WorkerAsyncStub]:
        """Open a channel for one call, whose errors become ControlError."""
        endpoint = self._config.grpc if not api else _regional(api)
        if endpoint.tls:
            credentials = grpc.ssl_channel_credentials(grpc_roots())
            channel = grpc.aio.secure_channel(endpoint.target, credentials, WITHOUT_PROXY)
        else:
            channel = grpc.aio.insecure_channel(endpoint.target, WITHOUT_PROXY)
        try:
            async with channel:
                yield nvcf_pb2_grpc.WorkerStub(channel)
        except grpc.aio.AioRpcError as error:
            reason = error.details() or "no reason given"
            raise ControlError(
                f"{call} failed: {error.code().name}: {reason}",
                permanent=error.code().name in _PERMANENT,
                forbidden=error.code() is grpc.StatusCode.PERMISSION_DENIED,
            ) from error


def _regional(api: str) -> GrpcEndpoint:
    try:
        return grpc_endpoint(api)
    except ConfigurationError as error:
        raise ControlError(
            f"directResponseUrl of the request is unusable: {api[:128]!r}", permanent=True
        ) from error


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def _unix_time(response: nvcf_pb2.WorkerConnectOnceResponse) -> float | None:
    if not response.HasField("expiration"):
        return None
    return response.expiration.seconds + response.expiration.nanos / 1e9
