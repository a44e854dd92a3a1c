"""Fixtures: one tritonserver for all tests of a pytest worker, and one for a test that changes it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.triton.server import TritonServer, running_server

TIMEOUT = 300.0
"""Seconds for a test with the start of its server, on a busy machine."""
LOADED = ("identity", "add_sub", "batched", "repeat", "hang", "running_sum", "twice")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep the tests of the common server in one pytest worker."""
    if "triton_server" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group("triton_server"))
    item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def triton_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TritonServer]:
    """One server with all models but `broken`. A test neither ends it nor unloads one of `LOADED`."""
    log = tmp_path_factory.mktemp("triton") / "tritonserver.log"
    async with running_server(log, models=LOADED) as server:
        yield server


@pytest_asyncio.fixture
async def own_triton_server(tmp_path: Path) -> AsyncIterator[TritonServer]:
    """Run a server for one test, which may load and unload models and end it. No model is loaded."""
    async with running_server(tmp_path / "tritonserver.log") as server:
        yield server
