"""pytest fixtures, enabled by `pytest_plugins = ["nvcf_worker.testing.plugin"]` in a conftest.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nvcf_worker.testing.platform import LocalPlatform


@pytest.fixture(scope="session")
def nvcf_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """Start a platform for the test session (one per worker process under pytest-xdist); see `deploy`.

    Needs the extra `local`.
    """
    with LocalPlatform(tmp_path_factory.mktemp("nvcf")) as platform:
        yield platform
