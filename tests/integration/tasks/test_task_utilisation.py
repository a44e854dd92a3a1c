"""Short tasks keep the GPUs of a cluster busy, beside a function that scales."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.tasks import SHORT, utilisation
from tests.support.platform.compute_plane import running_plane


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_gpus_are_given_to_instances_nine_tenths_of_the_time(tmp_path: Path) -> None:
    """The share counts from an order to the end of its process: on a busy machine a start takes longer."""
    async with running_plane(tmp_path, flags=("--log-level", "INFO")) as plane:
        given, _ = await utilisation(plane, tmp_path, SHORT)
        assert given > 0.9
