"""An agent's site: a real broker and an independent control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.platform.agent_site import Site, running_site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A control plane without agents."""
    async with running_site(tmp_path) as made:
        yield made
