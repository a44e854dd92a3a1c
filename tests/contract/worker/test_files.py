"""Assets, output directories and large results against a peer's gateway and object store."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from nvcf_worker import Response, SyncRequest
from tests.contract.worker.conftest import StartWorker
from tests.support.peers.gateway import PeerGateway
from tests.support.waiting import eventually


def _nothing_left(directory: Path) -> bool:
    return not directory.exists() or not list(directory.iterdir())


async def test_assets_are_local_files_and_go_afterwards(
    gateway: PeerGateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    def handler(request: SyncRequest) -> Any:
        return {
            "sizes": {name: os.path.getsize(asset) for name, asset in request.assets.items()},
            "types": [asset.content_type for asset in request.assets.values()],
            "parents": sorted({str(asset.path.parent) for asset in request.assets.values()}),
            "directory": request.headers["NVCF-ASSET-DIR"],
            "ids": request.headers["NVCF-FUNCTION-ASSET-IDS"],
        }

    assets = {str(uuid.uuid4()): b"small", str(uuid.uuid4()): bytes(3_000_000)}
    gateway.store.assets.update(assets)
    gateway.store.failures = [503]
    first, second = assets
    base = tmp_path / "assets"
    await start_worker(handler, asset_dir=base).ready()
    addresses = [(first, gateway.store.asset_url(first)), (second, gateway.store.asset_url(second, "old"))]
    call = await gateway.invoke(assets=addresses)
    answer = (await call.answer()).json()
    assert answer["sizes"] == {name: len(data) for name, data in assets.items()}
    assert answer["types"] == ["text/x", "text/x"]
    assert answer["parents"] == [answer["directory"]] == [str(base / call.request_id)]
    assert answer["ids"].split(",") == [first, second]
    assert gateway.store.refreshes == 1
    await eventually(lambda: _nothing_left(base), "removed")


async def test_an_asset_that_is_not_there(
    gateway: PeerGateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    await start_worker(lambda request: "never", asset_dir=tmp_path / "assets").ready()
    missing = str(uuid.uuid4())
    call = await gateway.invoke(assets=[(missing, gateway.store.asset_url(missing))])
    answer = await call.answer()
    assert (answer.status, answer.json()["title"]) == (502, "Input Asset Unavailable")
    assert missing in answer.json()["detail"]


@pytest.mark.parametrize("trouble", [[], [503], [403]])
async def test_files_are_zipped_and_uploaded(
    gateway: PeerGateway, start_worker: StartWorker, tmp_path: Path, trouble: list[int]
) -> None:
    def handler(request: SyncRequest) -> Any:
        assert request.headers["NVCF-LARGE-OUTPUT-DIR"] == str(request.output_dir)
        (request.output_dir / "image.bin").write_bytes(bytes(range(256)) * 100)
        (request.output_dir / "sub").mkdir()
        (request.output_dir / "sub" / "b.txt").write_text("b")
        (request.output_dir / "progress").write_text("")
        return {"made": 2}

    gateway.store.failures = list(trouble)
    base = tmp_path / "responses"
    await start_worker(handler, response_dir=base).ready()
    call = await gateway.invoke(large=True)
    answer = await call.answer()
    assert (answer.status, answer.body) == (302, b"")
    assert answer.headers["location"] == gateway.store.download_url(call.request_id)
    assert gateway.store.archive(call.request_id) == {
        "image.bin": bytes(range(256)) * 100,
        "sub/b.txt": b"b",
        f"{call.request_id}.response": b'{"made":2}',
    }
    assert gateway.store.lengths == [len(gateway.store.uploads[call.request_id])]
    assert gateway.store.refreshes == (1 if trouble == [403] else 0)
    await eventually(lambda: _nothing_left(base), "removed")


async def test_an_answer_beyond_the_direct_limit_is_uploaded(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    await start_worker(lambda request: bytes(int(request.read()))).ready()
    small = await gateway.invoke(b"5242880", large=True)
    assert len((await small.answer()).body) == 5_242_880
    large = await gateway.invoke(b"5242881", large=True)
    assert (await large.answer()).status == 302
    (content,) = gateway.store.archive(large.request_id).values()
    assert len(content) == 5_242_881
    # Without a place to upload to it goes the usual way.
    direct = await gateway.invoke(b"5242881")
    assert len((await direct.answer()).body) == 5_242_881


async def test_a_store_that_takes_nothing_is_an_error_to_the_caller(
    gateway: PeerGateway, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nvcf_worker.exchange import large_results
    from nvcf_worker.process.durations import Backoff

    monkeypatch.setattr(large_results, "BACKOFF", Backoff(first=0.01, limit=0.01))
    gateway.store.failures = [500] * large_results.ATTEMPTS
    await start_worker(lambda request: bytes(6_000_000)).ready()
    answer = await (await gateway.invoke(large=True)).answer()
    assert (answer.status, answer.json()["title"]) == (500, "Large Result Not Delivered")


async def test_files_that_no_call_carries_are_an_error(
    gateway: PeerGateway, start_worker: StartWorker
) -> None:
    def handler(request: SyncRequest) -> Any:
        # Named all the same: progress is told there.
        assert request.headers["NVCF-LARGE-OUTPUT-DIR"] == str(request.output_dir)
        (request.output_dir / "x").write_text("x")
        return "text"

    def no_address(request_id: str) -> str:
        return ""

    gateway.store.refreshed_url = no_address  # type: ignore[method-assign]
    await start_worker(handler).ready()
    answer = await (await gateway.invoke()).answer()
    assert answer.status == 500
    assert "no place for them" in answer.json()["detail"]


async def test_an_error_uploads_nothing(gateway: PeerGateway, start_worker: StartWorker) -> None:
    def handler(request: SyncRequest) -> Any:
        (request.output_dir / "x").write_text("x")
        return Response({"error": "half done"}, 500)

    await start_worker(handler).ready()
    answer = await (await gateway.invoke(large=True)).answer()
    assert (answer.status, answer.json()["detail"]) == (500, "half done")
    assert not gateway.store.uploads
