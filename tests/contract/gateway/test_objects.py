"""Large results and input assets (protocol.md, sections 4.7 and 4.8)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc.aio
import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.contract.gateway.test_polling import call
from tests.support.peers.worker import PeerWorker, peer_worker
from tests.support.platform.gateways import Platform, Version

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASSETS = "/v2/nvcf/assets"


async def fetched(
    platform: Platform, url: str, method: str = "GET", data: Any = None
) -> tuple[int, str, bytes]:
    """Use a signed URL as a bare HTTP client does: no Authorization header."""
    async with platform.session.request(method, url, data=data) as response:
        return response.status, response.headers.get("Content-Type", ""), await response.read()


async def uploaded(platform: Platform, data: bytes, content_type: str = "image/png") -> str:
    body = json.dumps({"contentType": content_type, "description": "a picture"}).encode()
    answer = await call(platform, "POST", ASSETS, body)
    assert answer.status == 200, answer.body
    assert (await fetched(platform, answer.json["uploadUrl"], "PUT", data))[0] == 200
    return str(answer.json["assetId"])


async def rpc(worker: PeerWorker, name: str, request: Any) -> Any:
    async with grpc.aio.insecure_channel(worker.platform.gateway.grpc) as channel:
        stub = nvcf_pb2_grpc.WorkerStub(channel)
        metadata = (("authorization", f"Bearer {worker.connected.nvcfWorkerToken}"),)
        return await getattr(stub, name)(request, metadata=metadata, timeout=10)


async def test_large_result_by_upload_and_302(platform: Platform) -> None:
    version = await platform.deployed_version()
    data = bytes(range(256)) * 30_000
    async with peer_worker(platform, version) as worker:
        url = platform.gateway.url + version.pexec
        request = platform.session.post(url, headers=platform.authorization(), allow_redirects=False)
        opening = asyncio.create_task(request.__aenter__())
        work = await worker.pull()
        assert (await fetched(platform, work.request.largeResponseUrl, "PUT", data))[0] == 200
        answer = await rpc(
            worker,
            "RequestLargeResponseDownloadCredentials",
            nvcf_pb2.LargeResponseDownloadCredentialsRequest(
                functionId=version.function_id,
                functionVersionId=version.id,
                requestId=work.request.requestId,
                ncaId=work.request.ncaId,
            ),
        )
        await work.answer(b"", "302 Found", f"Location: {answer.largeResponseDownloadUrl}")
        response = await opening
        assert (response.status, response.headers["nvcf-status"]) == (302, "fulfilled")
        assert await fetched(platform, response.headers["Location"]) == (
            200,
            "application/octet-stream",
            data,
        )
        response.release()


async def test_signed_urls_are_good_for_their_purpose_only(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(call(platform, "POST", version.pexec, b""))
        work = await worker.pull()
        url = work.request.largeResponseUrl
        other = url.replace(work.request.requestId, new_id())
        later = url.replace("until=", "until=9")
        for bad in (other, later, url[:-1] + ("0" if url[-1] != "0" else "1"), url.split("?")[0]):
            assert (await fetched(platform, bad, "PUT", b"x"))[0] == 403
        assert (await fetched(platform, url))[0] == 403, "an upload URL does not download"
        fresh = await rpc(
            worker,
            "RefreshLargeUploadCredentials",
            nvcf_pb2.RefreshLargeUploadCredentialsRequest(
                requestId=work.request.requestId, functionId=version.function_id, functionVersionId=version.id
            ),
        )
        assert (await fetched(platform, fresh.largeResponseUrl, "PUT", b"x"))[0] == 200
        await work.answer()
        await task


async def test_a_browser_runs_nothing_from_a_signed_url(platform: Platform) -> None:
    """Anybody's HTML would run on the origin of the dashboard, and read with its session."""
    version = await platform.deployed_version()
    asset = await uploaded(platform, b"<script>alert(1)</script>", "text/html")
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(
            call(platform, "POST", version.pexec, b"", NVCF_INPUT_ASSET_REFERENCES=asset)
        )
        work = await worker.pull()
        async with platform.session.get(work.request.inputAssetReference[0].reference) as response:
            assert response.status == 200
            assert response.headers["Content-Security-Policy"].startswith("sandbox;")
        await work.answer()
        await task


async def test_pass_through_has_no_large_response_url(platform: Platform) -> None:
    version = await platform.deployed_version()
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(call(platform, "POST", "/x", b"", function_id=version.function_id))
        work = await worker.pull()
        assert work.request.largeResponseUrl == ""
        await work.answer()
        await task


async def test_assets_reach_the_worker(platform: Platform) -> None:
    version = await platform.deployed_version()
    picture, text = b"\x89PNG" * 100_000, b"hello"
    ids = [await uploaded(platform, picture), await uploaded(platform, text, "text/plain")]
    async with peer_worker(platform, version) as worker:
        listed = f"{ids[0]}, {ids[1]},{ids[0]}"
        task = asyncio.create_task(
            call(platform, "POST", version.pexec, b"", NVCF_INPUT_ASSET_REFERENCES=listed)
        )
        work = await worker.pull()
        references = work.request.inputAssetReference
        assert [each.assetId for each in references] == ids
        assert [each.contentType for each in references] == ["image/png", "text/plain"]
        assert await fetched(platform, references[0].reference) == (200, "image/png", picture)
        assert await fetched(platform, references[1].reference) == (200, "text/plain", text)
        async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
            stub = nvcf_pb2_grpc.WorkerStub(channel)
            stream = stub.RefreshAssetDownloadCredentials(
                metadata=(("authorization", f"Bearer {worker.connected.nvcfWorkerToken}"),), timeout=10
            )
            await stream.write(_refresh(version, work.request.requestId, ids[1]))
            fresh = await stream.read()
            assert isinstance(fresh, nvcf_pb2.RefreshAssetDownloadCredentialsResponse)
            assert fresh.inputAssetReference.contentType == "text/plain"
            assert (await fetched(platform, fresh.inputAssetReference.reference))[2] == text
            await stream.write(_refresh(version, work.request.requestId, new_id()))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        await work.answer()
        assert (await task).status == 200


def _refresh(
    version: Version, request_id: str, asset_id: str
) -> nvcf_pb2.RefreshAssetDownloadCredentialsRequest:
    return nvcf_pb2.RefreshAssetDownloadCredentialsRequest(
        requestId=request_id,
        functionId=version.function_id,
        functionVersionId=version.id,
        assetId=asset_id,
    )


async def test_exec_takes_assets_from_its_wrapper(platform: Platform) -> None:
    version = await platform.deployed_version()
    asset = await uploaded(platform, b"x")
    body = json.dumps({"requestHeader": {"inputAssetReferences": [asset]}, "requestBody": 1}).encode()
    async with peer_worker(platform, version) as worker:
        task = asyncio.create_task(call(platform, "POST", version.exec, body))
        work = await worker.pull()
        assert [each.assetId for each in work.request.inputAssetReference] == [asset]
        await work.answer(b"1", "200 OK", "Content-Type: application/json")
        assert (await task).status == 200


async def test_unknown_foreign_and_announced_assets_are_404(platform: Platform) -> None:
    version = await platform.deployed_version()
    body = json.dumps({"contentType": "text/plain"}).encode()
    announced = (await call(platform, "POST", ASSETS, body)).json["assetId"]
    foreign_asset = await call(platform, "POST", ASSETS, body, key="foreign")
    await fetched(platform, foreign_asset.json["uploadUrl"], "PUT", b"theirs")
    for asset in (new_id(), "not-a-uuid", announced, foreign_asset.json["assetId"]):
        answer = await call(platform, "POST", version.pexec, b"", NVCF_INPUT_ASSET_REFERENCES=asset)
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
        assert (await call(platform, "GET", f"{ASSETS}/{asset}")).status == 404
        assert (await call(platform, "DELETE", f"{ASSETS}/{asset}")).status == 404
    await platform.queue_is_empty(version)


async def test_assets_are_described_and_deleted(platform: Platform) -> None:
    asset = await uploaded(platform, b"x")
    shown = (await call(platform, "GET", f"{ASSETS}/{asset}")).json["asset"]
    assert shown == {"assetId": asset, "contentType": "image/png", "description": "a picture"}
    assert (await call(platform, "DELETE", f"{ASSETS}/{asset}")).status == 204
    assert (await call(platform, "GET", f"{ASSETS}/{asset}")).status == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "contentType"), ({"contentType": "x"}, "contentType"), ({"contentType": "a/b", "more": 1}, "more")],
)
async def test_bad_assets_are_400_naming_the_field(platform: Platform, body: Any, field: str) -> None:
    answer = await call(platform, "POST", ASSETS, json.dumps(body).encode())
    assert (answer.status, answer.json["field"]) == (400, field)
