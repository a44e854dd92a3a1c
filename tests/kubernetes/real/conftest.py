"""The platform on the real node, installed once for all tests of this folder."""

from __future__ import annotations

import pytest

from tests.kubernetes.cluster.node import Node
from tests.kubernetes.real.images import write_product
from tests.kubernetes.real.platform import Platform


@pytest.fixture(scope="session")
def control_plane(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    """The chart nvcf, installed with images of this tree."""
    folder = tmp_path_factory.mktemp("product")
    write_product(folder / "product.tar", folder, node.cluster.tools["helm"])
    node.add_images(folder / "product.tar")
    platform = Platform(node, folder)
    platform.install_control_plane()
    return platform


@pytest.fixture(scope="session")
def platform(control_plane: Platform) -> Platform:
    """Both charts, installed with images of this tree."""
    control_plane.install_agent()
    return control_plane
