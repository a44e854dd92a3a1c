"""Objects of a request are stored in its region, and are found from every region."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.integration.test_regions import Running, call, stream_info
from tests.support.peers.worker import ATTACH, peer_worker
from tests.support.platform.broker_cluster import running_cluster
from tests.support.platform.gateways import Platform
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("regions")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def regions(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """One node in region east, two in west. Gateways: east, west."""
    directory = tmp_path_factory.mktemp("region-objects")
    async with running_cluster(directory, [("east",), ("west",), ("west",)]) as running:
        yield running


async def fetched(platform: Platform, url: str, method: str = "GET", data: bytes | None = None) -> bytes:
    async with platform.session.request(method, url, data=data) as response:
        assert response.status == 200, await response.text()
        return await response.read()


async def test_streams_and_buckets_lie_in_their_region(regions: Running) -> None:
    """Placement tag `KEY:R` for everything that belongs to one region (protocol.md, section 2.3)."""
    cluster, platform = regions
    gateway = platform.gateways[0]
    body = json.dumps({"contentType": "text/plain"})
    await call(platform, gateway, "POST", "/v2/nvcf/assets", json.loads(body))
    for region, nodes in (("east", {0}), ("west", {1, 2})):
        for stream in (f"requestToFunctionVersion_{region}", f"OBJ_nvcf_results_{region}"):
            info = await stream_info(platform, stream)
            assert info["config"]["placement"] == {"tags": [f"aws-region:{region}"]}, stream
            assert cluster.nodes.index(cluster.named(info["cluster"]["leader"])) in nodes
    assets = await stream_info(platform, "OBJ_nvcf_assets_east")
    assert assets["config"]["placement"] == {"tags": ["aws-region:east"]}


async def test_every_gateway_finds_a_kept_body(regions: Running) -> None:
    """[ext] The part of a body that does not fit into the message is stored in the region of the call."""
    _, platform = regions
    east, west = platform.gateways
    version = await platform.deployed_version()
    body = {"text": "z" * 100_000}
    status, headers, _ = await call(platform, east, "POST", version.pexec, body, NVCF_POLL_SECONDS="1")
    assert (status, headers["nvcf-status"]) == (202, "pending-evaluation")
    async with peer_worker(platform, version, gateway=east) as worker:
        work = await worker.pull()
        seen: set[str] = set()

        async def both_respond() -> bool:
            # The broker chooses a replica.
            message = await work.client.request(
                f"nvcf.attach.{version.id}", work.request.requestId.encode(), timeout=30
            )
            config = nvcf_pb2.StatelessConfig.FromString(message.data).connectionConfigs[0].http1Config
            seen.add(config.targetURI)
            async with platform.session.get(
                config.targetURI + ATTACH,
                headers={"Authorization": f"Bearer {config.requestAuthorizationToken}"},
            ) as response:
                rest = await response.read()
            assert json.loads(work.request.requestBody + rest) == body
            return seen == {east.url, west.url}

        await eventually(both_respond, "both gateways respond")
        await work.ack()


async def test_assets_and_large_results_are_reached_from_other_regions(regions: Running) -> None:
    """A worker of one region serves callers of another: the URLs of either gateway lead to the object."""
    _, platform = regions
    east, west = platform.gateways
    version = await platform.deployed_version()
    asset: Any = None

    async def created() -> bool:
        # Three busy brokers may need longer for a bucket's first use than a gateway waits.
        nonlocal asset
        status, _, asset = await call(
            platform, east, "POST", "/v2/nvcf/assets", {"contentType": "text/plain"}
        )
        assert status in (200, 503), asset
        return status == 200

    await eventually(created, "the asset is created")
    await fetched(platform, asset["uploadUrl"], "PUT", b"uploaded in the east")
    async with peer_worker(platform, version, gateway=west) as worker:
        task = asyncio.create_task(
            call(platform, west, "POST", version.pexec, {}, NVCF_INPUT_ASSET_REFERENCES=asset["assetId"])
        )
        work = await worker.pull()
        link = work.request.inputAssetReference[0].reference
        assert link.startswith(west.url)
        assert await fetched(platform, link) == b"uploaded in the east"
        await fetched(platform, work.request.largeResponseUrl, "PUT", b"PK zip")
        # A worker that is connected to the east requests the download URL there.
        token = await platform.worker_token(version, new_id())
        async with grpc.aio.insecure_channel(east.grpc) as channel:
            stub: nvcf_pb2_grpc.WorkerAsyncStub = nvcf_pb2_grpc.WorkerStub(channel)
            answer = await stub.RequestLargeResponseDownloadCredentials(
                nvcf_pb2.LargeResponseDownloadCredentialsRequest(
                    functionId=version.function_id,
                    functionVersionId=version.id,
                    requestId=work.request.requestId,
                    ncaId=work.request.ncaId,
                ),
                metadata=(("authorization", f"Bearer {token}"),),
                timeout=30,
            )
        assert answer.largeResponseDownloadUrl.startswith(east.url)
        assert await fetched(platform, answer.largeResponseDownloadUrl) == b"PK zip"
        await work.answer()
        assert (await task)[0] == 200
