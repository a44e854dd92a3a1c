"""One gateway for each module; the tests are its autoscaler and its agents."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.platform.icms import ComputePlane, running_compute_plane


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ComputePlane]:
    """Broker and one gateway."""
    async with running_compute_plane(tmp_path_factory.mktemp("icms")) as running:
        yield running
