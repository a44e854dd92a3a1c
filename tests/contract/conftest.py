"""One platform a test module: broker and gateway are real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.platform.gateways import Platform, running_platform


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and one gateway."""
    directory: Path = tmp_path_factory.mktemp("platform")
    async with running_platform(directory) as running:
        yield running
