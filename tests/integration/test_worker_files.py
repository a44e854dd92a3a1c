"""Assets and large results: real gateway, broker, object store and worker processes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.waiting import eventually

FUNCTIONS = Path(__file__).parent.parent / "functions"


async def ask(platform: Platform, version: Version, body: Any, **headers: str) -> tuple[int, Any, bytes]:
    sent = {**platform.authorization(), **{name.replace("_", "-"): value for name, value in headers.items()}}
    url = platform.gateway.url + version.pexec
    async with platform.session.post(url, json=body, headers=sent, allow_redirects=False) as response:
        return response.status, response.headers, await response.read()


async def upload(platform: Platform, data: bytes) -> str:
    """Create an asset. Returns its id."""
    made = await platform.call("POST", "/v2/nvcf/assets", {"contentType": "application/x-test"})
    headers = {"Content-Type": "application/x-test"}
    async with platform.session.put(made["uploadUrl"], data=data, headers=headers) as response:
        assert response.status == 200, await response.text()
    return str(made["assetId"])


async def test_assets_reach_the_function_as_files(tmp_path: Path) -> None:
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version()
        shared = tmp_path / "shared"
        await platform.start_worker(version, FUNCTIONS / "files.py", "digests", shared=shared)
        contents = [b"small", os.urandom(3_000_000)]
        assets = {await upload(platform, data): data for data in contents}
        status, _, body = await ask(platform, version, {}, NVCF_INPUT_ASSET_REFERENCES=", ".join(assets))
        assert status == 200, body
        assert json.loads(body) == {name: hashlib.sha256(data).hexdigest() for name, data in assets.items()}
        await platform.queue_is_empty(version)
        folder = shared / "requests" / "assets"
        await eventually(lambda: not list(folder.iterdir()), "the files are gone")


@pytest.mark.parametrize("files", [1, 12])
async def test_files_come_back_as_a_zip_archive(tmp_path: Path, files: int) -> None:
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version()
        await platform.start_worker(version, FUNCTIONS / "files.py", "archive")
        status, headers, body = await ask(platform, version, {"files": files})
        assert (status, body) == (302, b"")
        assert headers["nvcf-status"] == "fulfilled"
        async with platform.session.get(headers["Location"]) as response:
            assert response.status == 200
            content = await response.read()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            answer = archive.read(f"{headers['nvcf-reqid']}.response")
            assert all(archive.read(f"{index}.bin") == bytes([index]) * 1_000_000 for index in range(files))
        assert len(names) == files + 1
        assert json.loads(answer) == {"files": files}
        await platform.queue_is_empty(version)
