"""pytest fixtures; `pytest_plugins = ["nvcf_worker.testing.plugin"]` in a conftest.py turns them on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nvcf_worker.testing.platform import LocalPlatform


@pytest.fixture(scope="session")
def nvcf_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """A platform of the test session (of each worker process under pytest-xdist): `.deploy(...)`.

    Needs the extra `local`.
    """
    with LocalPlatform(tmp_path_factory.mktemp("nvcf")) as platform:
        yield platform
