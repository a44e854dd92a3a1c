"""B2: a worker gets links only to the objects of requests that its version was given."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.peers.worker import PeerWorker, Work, peer_worker
from tests.support.platform.gateways import Platform, Version, running_platform


@contextlib.asynccontextmanager
async def victim_and_attacker(directory: Path) -> AsyncIterator[tuple[Platform, PeerWorker, PeerWorker]]:
    """Run workers of two accounts."""
    async with running_platform(directory, gateways=2) as platform:
        victim = await platform.deployed_version()
        made = await platform.call(
            "POST", "/v2/nvcf/functions", {"name": "theirs", "containerImage": "x/y:1"}, key="foreign"
        )
        attacker = Version(made["function"]["id"], made["function"]["versionId"])
        path = f"/v2/nvcf/deployments/functions/{attacker.function_id}/versions/{attacker.id}"
        await platform.call("POST", path, {"deploymentSpecifications": [{}]}, key="foreign")
        async with (
            peer_worker(platform, victim) as one,
            peer_worker(platform, attacker, gateway=platform.gateways[1]) as two,
        ):
            yield platform, one, two


async def asked(worker: PeerWorker, name: str, address: str | None = None, **fields: str) -> Any:
    """Return the response to a call of the worker for its own version, or the status that refuses it."""
    kinds = {
        "RefreshLargeUploadCredentials": nvcf_pb2.RefreshLargeUploadCredentialsRequest,
        "RequestLargeResponseDownloadCredentials": nvcf_pb2.LargeResponseDownloadCredentialsRequest,
        "RefreshAssetDownloadCredentials": nvcf_pb2.RefreshAssetDownloadCredentialsRequest,
    }
    request = kinds[name](
        functionId=worker.version.function_id, functionVersionId=worker.version.id, **fields
    )
    metadata = (("authorization", f"Bearer {worker.connected.nvcfWorkerToken}"),)
    async with grpc.aio.insecure_channel(address or worker.platform.gateway.grpc) as channel:
        method = getattr(nvcf_pb2_grpc.WorkerStub(channel), name)
        try:
            if name != "RefreshAssetDownloadCredentials":
                return await method(request, metadata=metadata, timeout=20)
            async for response in method(iter([request]), metadata=metadata, timeout=20):
                return response
        except grpc.aio.AioRpcError as error:
            return error.code()


async def uploaded_asset(platform: Platform, key: str = "admin") -> str:
    made = await platform.call("POST", "/v2/nvcf/assets", {"contentType": "text/plain"}, key=key)
    async with platform.session.put(made["uploadUrl"], data=b"secret") as response:
        assert response.status == 200
    return str(made["assetId"])


async def given(
    platform: Platform, worker: PeerWorker, asset: str, key: str = "admin"
) -> tuple[asyncio.Task[int], Work]:
    """Start a call with an asset, and pull its request."""

    async def call() -> int:
        headers = {**platform.authorization(key), "NVCF-INPUT-ASSET-REFERENCES": asset}
        url = platform.gateway.url + worker.version.pexec
        async with platform.session.post(url, headers=headers, data=b"") as response:
            return response.status

    return asyncio.create_task(call()), await worker.pull()


CALLS = ("RefreshLargeUploadCredentials", "RequestLargeResponseDownloadCredentials")
NOT_FOUND = grpc.StatusCode.NOT_FOUND


async def test_b02_a_worker_gets_no_links_to_foreign_objects(tmp_path: Path) -> None:
    """Foreign requests and assets look like unknown ones, at each gateway; the worker's own are served."""
    async with victim_and_attacker(tmp_path) as (platform, victim, attacker):
        asset, unnamed = await uploaded_asset(platform), await uploaded_asset(platform)
        task, work = await given(platform, victim, asset)
        own_asset = await uploaded_asset(platform, "foreign")
        own_task, own = await given(platform, attacker, own_asset, "foreign")
        foreign, mine = work.request.requestId, own.request.requestId
        for gateway in platform.gateways:
            for name in CALLS:
                assert await asked(attacker, name, gateway.grpc, requestId=foreign) is NOT_FOUND, name
                assert await asked(attacker, name, gateway.grpc, requestId=new_id()) is NOT_FOUND, name
                response = await asked(victim, name, gateway.grpc, requestId=foreign)
                assert foreign in str(response), "its own worker gets the link from each gateway"
            name = "RefreshAssetDownloadCredentials"
            for request_id, asset_id in (
                (foreign, asset), (mine, asset), (mine, unnamed), (new_id(), asset), (new_id(), own_asset),
            ):  # fmt: skip
                answer = await asked(attacker, name, gateway.grpc, requestId=request_id, assetId=asset_id)
                assert answer is NOT_FOUND, (request_id == mine, asset_id == asset)
            fresh = await asked(victim, name, gateway.grpc, requestId=foreign, assetId=asset)
            async with platform.session.get(fresh.inputAssetReference.reference) as response:
                assert await response.read() == b"secret"
            assert await asked(victim, name, gateway.grpc, requestId=foreign, assetId=unnamed) is NOT_FOUND
        await work.answer()
        await own.answer()
        assert (await task, await own_task) == (200, 200)
        await platform.queue_is_empty(victim.version)
        for name in CALLS:
            assert await asked(victim, name, requestId=foreign) is NOT_FOUND, "an answered request is closed"


async def test_b02_a_shared_function_gets_its_callers_assets(tmp_path: Path) -> None:
    """The asset belongs to the account that calls, not to the one that owns the function."""
    async with victim_and_attacker(tmp_path) as (platform, victim, _):
        path = f"/v2/nvcf/functions/{victim.version.function_id}/authorizations"
        await platform.call("PUT", path, {"authorizedParties": [{"ncaId": "account-two"}]})
        asset = await uploaded_asset(platform, "foreign")
        task, work = await given(platform, victim, asset, "foreign")
        fresh = await asked(
            victim, "RefreshAssetDownloadCredentials", requestId=work.request.requestId, assetId=asset
        )
        assert fresh.inputAssetReference.assetId == asset
        await work.answer()
        assert await task == 200
