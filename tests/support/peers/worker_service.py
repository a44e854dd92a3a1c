"""The peer gateway's WorkerService (protocol.md, section 1.2)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.peers.store import PeerStore


class Registry(Protocol):
    """The state and the counters of the service."""

    version_id: str
    regions: list[str]
    accepted_tokens: set[str]
    token_life: float
    connects: list[str]
    provisions: list[str]
    refusal: grpc.StatusCode | None
    refused: int
    connect_answer: Callable[[nvcf_pb2.WorkerConnectOnceResponse], None] | None
    store: PeerStore

    async def provision(self, region: str = ...) -> None:
        """Create stream and consumer of a region."""


class WorkerService(nvcf_pb2_grpc.WorkerServicer):
    """Serves workers. Calls that no test needs are UNIMPLEMENTED."""

    def __init__(self, gateway: Registry) -> None:
        self._gateway = gateway

    async def _check(self, context: Any) -> str:
        gateway = self._gateway
        if gateway.refusal is not None:
            gateway.refused += 1
            await context.abort(gateway.refusal, "refused by the test")
        metadata = dict(context.invocation_metadata())
        token = str(metadata.get("authorization", "")).removeprefix("Bearer ")
        if token not in gateway.accepted_tokens:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "unknown worker token")
        return token

    async def ConnectOnce(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        token = await self._check(context)
        gateway = self._gateway
        assert request.functionVersionId == gateway.version_id
        gateway.connects.append(token)
        fresh = f"token-{uuid.uuid4()}"
        gateway.accepted_tokens.add(fresh)
        answer = nvcf_pb2.WorkerConnectOnceResponse(
            connectedRegion=gateway.regions[0], otherRegions=gateway.regions[1:], nvcfWorkerToken=fresh
        )
        answer.expiration.CopyFrom(timestamp(time.time() + gateway.token_life))
        if gateway.connect_answer is not None:
            gateway.connect_answer(answer)
        return answer

    async def ProvisionRegionalWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        await self._check(context)
        await self._gateway.provision(request.regionToProvision)
        self._gateway.provisions.append(request.regionToProvision)
        return nvcf_pb2.ProvisionWorkerResponse()

    async def RefreshLargeUploadCredentials(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        url = self._gateway.store.refreshed_url(request.requestId)
        return nvcf_pb2.RefreshLargeUploadCredentialsResponse(largeResponseUrl=url)

    async def RefreshAssetDownloadCredentials(self, requests: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        async for request in requests:
            reference = nvcf_pb2.InputAssetReference(
                assetId=request.assetId, reference=self._gateway.store.fresh_asset_url(request.assetId)
            )
            yield nvcf_pb2.RefreshAssetDownloadCredentialsResponse(inputAssetReference=reference)

    async def RequestLargeResponseDownloadCredentials(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        url = self._gateway.store.download_url(request.requestId)
        return nvcf_pb2.LargeResponseDownloadCredentialsResponse(largeResponseDownloadUrl=url)


def timestamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
