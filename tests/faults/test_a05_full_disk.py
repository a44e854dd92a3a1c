"""A5, A14: a store that cannot be written is noticed, reported, and recovered from without a person."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.platform.nvcf_up import LocalUp, local_up
from tests.support.platform.small_disk import SmallDisk, needs_small_disks
from tests.support.waiting import eventually

pytestmark = [needs_small_disks, pytest.mark.timeout(150)]
FUNCTION = "def handler(request): return 'ok'\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path) as disk:
        yield disk


async def _call(session: aiohttp.ClientSession, function: str, **headers: str) -> tuple[int, Any]:
    path = f"/v2/nvcf/pexec/functions/{function}"
    async with session.post(path, data=b"x", headers=headers) as response:
        return response.status, (await response.read(), response.headers)


async def test_a05_full_disk_and_free_again(disk: SmallDisk) -> None:
    async with local_up(disk.path) as up:
        function = await up.deploy("f", FUNCTION)
        async with up.session() as session:
            assert (await _call(session, function))[0] == 200
            disk.fill()

            async def refused() -> bool:
                status, (body, headers) = await _call(session, function)
                assert status in (200, 503), body
                if status == 503:
                    assert int(headers["Retry-After"]) >= 1
                    assert "disk is full" in json.loads(body)["detail"], body
                return status == 503

            await eventually(refused, "calls are refused")
            await _says_what_is_wrong(up, session, function)
            disk.free()

            async def works() -> bool:
                return (await _call(session, function))[0] == 200

            await eventually(works, "calls work again", story=(disk.path / "up.log").read_text)
            assert (await _call(session, function, **{"Idempotency-Key": "k"}))[0] == 200
            await eventually(lambda: _ready(session), "the platform is ready")
        assert "restarting the broker" in (disk.path / "up.log").read_text()
        assert up.state["children"]["gateway"]["restarts"] == 0


async def _ready(session: aiohttp.ClientSession) -> bool:
    async with session.get("/health/ready") as response:
        return response.status == 200 and (await response.json())["status"] == "ok"


async def _says_what_is_wrong(up: LocalUp, session: aiohttp.ClientSession, function: str) -> None:
    async with session.get("/health/ready") as response:
        assert response.status == 503
        document = await response.json()
    assert document["status"] == "unavailable"
    assert [each["part"] for each in document["troubles"]] == ["store"], document
    assert document["troubles"][0]["since"].startswith("20")
    async with session.get("/health") as response:
        assert response.status == 200, "liveness: a restart of the gateway would not help"
    assert "takes no writes" in await up.ok("status")
    # Neighbours: everything that needs the store is refused alike.
    assert (await _call(session, function, **{"Idempotency-Key": "early"}))[0] == 503
    async with session.post("/v2/nvcf/functions", json={"name": "g", "containerImage": "x"}) as response:
        assert response.status == 503
    async with session.get("/v2/nvcf/functions") as response:
        assert response.status == 200
