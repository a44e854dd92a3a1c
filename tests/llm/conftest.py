"""Fixtures: one engine for all tests of a pytest worker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.llm.server import LlamaServer, running_engine

TIMEOUT = 180.0
"""Seconds for a test on a busy machine."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep the tests of the common engine in one pytest worker."""
    if "engine" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.xdist_group("llm_engine"))
    item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaServer]:
    """One engine. A test does not end it."""
    async with running_engine(tmp_path_factory.mktemp("llm") / "llama-server.log") as server:
        yield server
