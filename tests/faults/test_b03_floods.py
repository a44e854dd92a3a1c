"""B3: a connection to the sessions port, with a key or without, cannot take the gateway from others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from h2.errors import ErrorCodes

from tests.support.peers.flood import KINDS
from tests.support.platform.gateways import Platform, running_platform
from tests.support.platform.processes import python
from tests.support.victims import compared

pytestmark = pytest.mark.asyncio(loop_scope="module")
CALM = str(int(ErrorCodes.ENHANCE_YOUR_CALM))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and one gateway with a sessions port."""
    directory: Path = tmp_path_factory.mktemp("floods")
    async with running_platform(directory, flags=("--sessions", "127.0.0.1:0")) as running:
        yield running


async def flooded(
    platform: Platform, kinds: list[str], seconds: float, headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """Flood from a process of its own; return its reports."""
    address = platform.gateway.sessions
    command = python(
        "-m", "tests.support.peers.flood", address, str(seconds), json.dumps(headers or {}), *kinds
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return [json.loads(line) for line in output.splitlines()]


async def test_b03_floods_without_a_key_are_ended(platform: Platform) -> None:
    """The gateway says why and closes; what it has taken by then is small."""
    reports = await flooded(platform, sorted(KINDS), 0.3)
    assert len(reports) == len(KINDS)
    for report in reports:
        assert CALM in report["codes"], report
        assert set(report["codes"]) <= {CALM, "none"}, report
        assert report["longest"] < 2_000_000, report


async def routed(platform: Platform) -> dict[str, str]:
    """Return the headers of a call with a key; no worker ever takes it."""
    version = await platform.deployed_version()
    key = platform.authorization("invoke")["Authorization"]
    return {"authorization": key, "function-id": version.function_id}


async def test_b03_floods_with_a_key_are_ended(platform: Platform) -> None:
    kinds = ["ping", "settings", "priority", "window update", "unknown", "empty data", "continuation"]
    for report in await flooded(platform, kinds, 0.5, await routed(platform)):
        assert CALM in report["codes"], report


@pytest.mark.parametrize(
    ("kind", "key"), [("priority", False), ("calls without a key", False), ("tiny data", True)]
)
async def test_b03_others_keep_half_their_rate(platform: Platform, kind: str, key: bool) -> None:
    headers = await routed(platform) if key else {}
    await compared(
        platform.gateway.url + "/health",
        kind,
        lambda seconds: flooded(platform, [kind], seconds, headers),
    )
