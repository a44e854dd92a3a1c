"""Calls to the WorkerService (protocol.md sections 1 and 5)."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio

from nvcf_proto import settings
from nvcf_proto.environment import NVCF_FQDN_GRPC, NVCF_WORKER_TOKEN
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from nvcf_worker.control.config import GrpcEndpoint, WorkerConfig, grpc_endpoint
from nvcf_worker.control.tls import grpc_roots
from nvcf_worker.errors import ConfigurationError, ControlError, StartupError
from nvcf_worker.process.backoff import Backoff

log = logging.getLogger("nvcf_worker")

CALL_TIMEOUT = 10.0
CONNECT_TIMEOUT = 30.0
"""ConnectOnce makes queues in each region, some of them far away."""
START_BACKOFF = Backoff(first=0.25, limit=10.0)

_PERMANENT = frozenset(
    (
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
    )
)


@dataclass(frozen=True)
class Connected:
    """Answer to ConnectOnce. `expires_at` is a Unix time in seconds, None when the platform does not say."""

    region: str
    other_regions: tuple[str, ...]
    token: str
    expires_at: float | None

    @property
    def regions(self) -> tuple[str, ...]:
        """All regions to pull from, the preferred one first."""
        return tuple(dict.fromkeys((self.region, *(name for name in self.other_regions if name))))


class ControlPlane:
    """The WorkerService. Calls are rare, so each opens a channel of its own and keeps none idle."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config

    async def connect_once(self, token: str) -> Connected:
        """Trade `token` for a new one and learn the regions. Raises ControlError."""
        request = nvcf_pb2.WorkerConnect(
            instanceId=self._config.instance_id,
            functionId=self._config.function_id,
            functionVersionId=self._config.version_id,
        )
        async with self._stub() as stub, _named_errors("ConnectOnce"):
            answer = await stub.ConnectOnce(request, metadata=_bearer(token), timeout=CONNECT_TIMEOUT)
        if not answer.connectedRegion:
            raise ControlError("ConnectOnce answered without a region", permanent=False)
        return Connected(
            region=answer.connectedRegion,
            other_regions=tuple(answer.otherRegions),
            # A platform that hands out no new token goes on with the one it was shown.
            token=answer.nvcfWorkerToken or token,
            expires_at=_unix_time(answer),
        )

    async def provision(self, token: str, region: str) -> None:
        """Ask for the streams and consumers of this version in `region`. Raises ControlError."""
        request = nvcf_pb2.ProvisionWorkerRequest(
            instanceId=self._config.instance_id,
            functionId=self._config.function_id,
            functionVersionId=self._config.version_id,
            regionToProvision=region,
        )
        async with self._stub() as stub, _named_errors("ProvisionRegionalWorker"):
            await stub.ProvisionRegionalWorker(request, metadata=_bearer(token), timeout=CALL_TIMEOUT)

    async def refresh_upload(self, token: str, request_id: str, api: str) -> str:
        """A new address to upload a large result to. Raises ControlError.

        `api`: directResponseUrl of the request, as only its own region knows it; empty for no other one.
        """
        request = nvcf_pb2.RefreshLargeUploadCredentialsRequest(
            requestId=request_id,
            functionId=self._config.function_id,
            functionVersionId=self._config.version_id,
        )
        async with self._stub(api) as stub, _named_errors("RefreshLargeUploadCredentials"):
            answer = await stub.RefreshLargeUploadCredentials(
                request, metadata=_bearer(token), timeout=CALL_TIMEOUT
            )
        return answer.largeResponseUrl

    async def refresh_asset(self, token: str, request_id: str, asset_id: str, api: str) -> str:
        """A new address to download an input asset from; `api` as above. Raises ControlError."""
        request = nvcf_pb2.RefreshAssetDownloadCredentialsRequest(
            requestId=request_id,
            functionId=self._config.function_id,
            functionVersionId=self._config.version_id,
            assetId=asset_id,
        )
        name = "RefreshAssetDownloadCredentials"
        async with self._stub(api) as stub, _named_errors(name):
            call = stub.RefreshAssetDownloadCredentials(
                iter([request]), metadata=_bearer(token), timeout=CALL_TIMEOUT
            )
            async for answer in call:
                return answer.inputAssetReference.reference
        raise ControlError(f"{name} ended without an answer", permanent=False)

    async def download_url(self, token: str, request_id: str, nca_id: str) -> str:
        """Where the caller finds an uploaded large result. Raises ControlError."""
        request = nvcf_pb2.LargeResponseDownloadCredentialsRequest(
            requestId=request_id,
            ncaId=nca_id,
            functionId=self._config.function_id,
            functionVersionId=self._config.version_id,
        )
        async with self._stub() as stub, _named_errors("RequestLargeResponseDownloadCredentials"):
            answer = await stub.RequestLargeResponseDownloadCredentials(
                request, metadata=_bearer(token), timeout=CALL_TIMEOUT
            )
        return answer.largeResponseDownloadUrl

    @asynccontextmanager
    async def _stub(self, api: str = "") -> AsyncIterator[nvcf_pb2_grpc.WorkerAsyncStub]:
        endpoint = self._config.grpc if not api else _regional(api)
        if endpoint.tls:
            channel = grpc.aio.secure_channel(endpoint.target, grpc.ssl_channel_credentials(grpc_roots()))
        else:
            channel = grpc.aio.insecure_channel(endpoint.target)
        async with channel:
            yield nvcf_pb2_grpc.WorkerStub(channel)


def _regional(api: str) -> GrpcEndpoint:
    try:
        return grpc_endpoint(api)
    except ConfigurationError as error:
        raise ControlError(
            f"directResponseUrl of the request is unusable: {api[:128]!r}", permanent=True
        ) from error


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def _unix_time(answer: nvcf_pb2.WorkerConnectOnceResponse) -> float | None:
    if not answer.HasField("expiration"):
        return None
    return answer.expiration.seconds + answer.expiration.nanos / 1e9


@asynccontextmanager
async def _named_errors(call: str) -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        reason = error.details() or "no reason given"
        raise ControlError(
            f"{call} failed: {error.code().name}: {reason}",
            permanent=error.code() in _PERMANENT,
            forbidden=error.code() is grpc.StatusCode.PERMISSION_DENIED,
        ) from error


async def connect_at_start(
    control: ControlPlane,
    tokens: list[str],
    *,
    clock: Callable[[], float] = time.monotonic,
    limit: float = settings.CONNECT_START_TIMEOUT,
) -> Connected:
    """ConnectOnce with the newest of `tokens` that is accepted.

    Passing troubles are retried for `limit` seconds, and so is PERMISSION_DENIED, with which a platform also
    answers workers of a version that is not active yet; any other refusal of the last token ends it at once.
    Raises StartupError with the reason.
    """
    deadline = clock() + limit
    remaining = list(tokens)
    attempt = 0
    while True:
        try:
            return await control.connect_once(remaining[0])
        except ControlError as error:
            if error.permanent and len(remaining) > 1:
                log.warning("a worker token was refused (%s); trying the other one", error)
                refused = remaining.pop(0)
                if not error.forbidden:
                    continue
                # It may be accepted later: they take turns.
                remaining.append(refused)
            delay = START_BACKOFF.delay(attempt, random.random())  # noqa: S311 - jitter
            over = clock() + delay > deadline
            if error.permanent and (over or not error.forbidden):
                raise StartupError(
                    f"{error}. The platform does not accept this worker: check {NVCF_WORKER_TOKEN} and the "
                    "function and instance ids."
                ) from error
            if over:
                raise StartupError(
                    f"{error}. Gave up after {limit:.0f} s: is {NVCF_FQDN_GRPC} right and reachable?"
                ) from error
            log.warning("%s; trying again in %.1f s", error, delay)
        attempt += 1
        await asyncio.sleep(delay)
