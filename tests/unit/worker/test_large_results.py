"""The last steps with an answer in compatibility mode: whatever a function leaves, its caller hears of it."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_worker.errors import AssetUnavailable, ControlError, ResultNotDelivered
from nvcf_worker.exchange import large_results
from nvcf_worker.exchange.assets import AssetFetcher, HttpClient
from nvcf_worker.exchange.files import RequestFiles
from nvcf_worker.exchange.large_results import LargeResults, as_problem
from nvcf_worker.function.response import Reply, StreamReply

JSON = [("content-type", "application/json")]


class Nobody:
    """Gives no addresses."""

    async def refresh_upload(self, request_id: str, api: str) -> str:
        """As the platform's."""
        raise ControlError("no", permanent=True)

    async def download_url(self, request_id: str, nca_id: str) -> str:
        """As the platform's."""
        raise ControlError("no", permanent=True)

    async def refresh_asset(self, request_id: str, asset_id: str, api: str) -> str:
        """As the platform's."""
        raise ControlError("no", permanent=True)


class Endless:
    """A stream that must be closed by whoever has it."""

    def __init__(self) -> None:
        self.closed = False

    async def __anext__(self) -> bytes:
        return b"x"

    async def aclose(self) -> None:
        """It ends."""
        self.closed = True


def message(**members: Any) -> nvcf_pb2.WorkerInvokeFunctionRequest:
    return nvcf_pb2.WorkerInvokeFunctionRequest(requestId=new_id(), **members)


def left_files(tmp_path: Path) -> RequestFiles:
    files = RequestFiles(tmp_path / "assets", tmp_path / "responses", new_id())
    (files.output_dir / "a").write_text("a")
    return files


@pytest.fixture
def results() -> LargeResults:
    return LargeResults(HttpClient(), Nobody())


@pytest.mark.parametrize("body", [b"[" * 4000, b'{"error": "\\ud800"}'])
async def test_an_error_whose_body_is_odd_json_is_a_problem_all_the_same(
    results: LargeResults, body: bytes
) -> None:
    made = await results.finish(message(), Reply(422, JSON, body), None)
    assert isinstance(made, Reply)
    assert (made.status, json.loads(made.body)["status"]) == (422, 422)
    assert as_problem(made) == made


async def test_a_stream_that_cannot_be_uploaded_is_closed(results: LargeResults, tmp_path: Path) -> None:
    """Nobody else knows of it any more: its generator, thread or connection would stay for ever."""
    source = Endless()
    with pytest.raises(ResultNotDelivered):
        await results.finish(message(), StreamReply(200, [], b"", source), left_files(tmp_path))
    assert source.closed


async def uploaded(results: LargeResults, files: RequestFiles, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names in the archive that would be uploaded."""
    names: list[str] = []

    async def put(_: Any, __: Any, archive: Path) -> None:
        names.extend(zipfile.ZipFile(archive).namelist())

    monkeypatch.setattr(results, "_put", put)
    with pytest.raises(ResultNotDelivered):  # there is nobody to say where it can be fetched
        await results.finish(message(largeResponseUrl="http://store/x"), Reply(200, [], b""), files)
    return names


async def test_files_with_old_time_stamps_are_packed(
    results: LargeResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacked images and reproducible builds have files of 1970, for which zip archives have no word."""
    files = left_files(tmp_path)
    os.utime(files.output_dir / "a", (0, 0))
    assert await uploaded(results, files, monkeypatch) == ["a"]


async def test_a_file_that_no_archive_can_name_is_an_error_for_the_caller(
    results: LargeResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = left_files(tmp_path)
    try:
        (files.output_dir / os.fsdecode(b"\xff")).write_text("b")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert await uploaded(results, files, monkeypatch) == []


async def test_a_caller_that_leaves_while_its_result_is_packed_leaves_nothing_on_disk(
    results: LargeResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = left_files(tmp_path)
    write = zipfile.ZipFile.write

    def slow(self: zipfile.ZipFile, *arguments: Any) -> None:
        begun.set()
        go_on.wait(20)
        write(self, *arguments)

    monkeypatch.setattr(zipfile.ZipFile, "write", slow)
    finishing = asyncio.create_task(
        results.finish(message(largeResponseUrl="http://store/x"), Reply(200, [], b""), files)
    )
    assert await asyncio.to_thread(begun.wait, 20)
    finishing.cancel()
    await asyncio.wait({finishing})
    go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert os.listdir(tmp_path) == ["responses"]


async def test_assets_that_came_are_removed_when_another_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request ends there, and nobody would remove them later."""
    fetcher = AssetFetcher(HttpClient(), Nobody())
    there = new_id()
    wanted = message()
    for asset in (there, new_id()):
        wanted.inputAssetReference.add(assetId=asset, reference=f"http://store/{asset}")
    directory = tmp_path / "request"

    async def download(url: str, path: Path) -> int:
        if not url.endswith(there):
            while not (directory / there).exists():
                await asyncio.sleep(0.001)
            return 404
        await asyncio.to_thread(path.write_bytes, b"data")
        return 200

    monkeypatch.setattr(fetcher, "_download", download)
    with pytest.raises(AssetUnavailable):
        await fetcher.fetch(wanted, directory)
    assert not directory.exists()


def test_the_module_says_what_it_packs(tmp_path: Path) -> None:
    with (tmp_path / "a.zip").open("wb") as file:
        large_results.pack(file, "id", b"body", [], None)
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == ["id.response"]
