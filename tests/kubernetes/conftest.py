"""Clusters for the tests. Each is made once, in the one pytest worker that runs the tests of its group."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from nvcf_agent.kubernetes.client.api import Api
from tests.kubernetes import custom_resources
from tests.kubernetes.cluster import clusters
from tests.kubernetes.cluster.clusters import Cluster
from tests.kubernetes.cluster.control_plane import Settings
from tests.kubernetes.cluster.kwok import FakeNodes, fake_nodes
from tests.kubernetes.cluster.node import Node, real_node
from tests.kubernetes.frozen_relay import FrozenRelay

GROUPS = ("node", "fake_cluster", "api_server")
"""Fixtures that start a cluster. Tests that need the same run in the same worker (`--dist loadgroup`)."""
GPUS = 8
"""Fake GPUs of the real node."""
TIMEOUT = 600.0
"""Seconds for a test with the cluster's start, on a busy machine. A build has to come before."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep the tests of one cluster in one worker, with time for its start."""
    used = getattr(item, "fixturenames", ())
    group = next((name for name in GROUPS if name in used), None)
    if group is not None:
        item.add_marker(pytest.mark.xdist_group(group))
        item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.fixture(scope="session")
def failed(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """Whether a test of this worker has failed: then the logs of its clusters are kept."""
    return lambda: request.session.testsfailed > 0


@pytest.fixture(scope="session")
def api_server(failed: Callable[[], bool]) -> Iterator[Cluster]:
    """An API server with controllers and scheduler, and without nodes: pods stay Pending."""
    with clusters.api_server(failed=failed) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def fake_cluster(failed: Callable[[], bool]) -> Iterator[FakeNodes]:
    """An API server of its own with kwok, and no nodes yet."""
    # On a busy machine kwok is late with the heartbeats of its nodes.
    patient = Settings(node_grace_seconds=600)
    with clusters.api_server(patient, failed=failed) as cluster, fake_nodes(cluster, failed) as nodes:
        yield nodes


@pytest.fixture
def kwok_nodes(fake_cluster: FakeNodes) -> Iterator[FakeNodes]:
    """Fake nodes of one test: `add` makes them, and they go with the test. `cluster` has the API server."""
    yield fake_cluster
    fake_cluster.remove()


@pytest.fixture(scope="session")
def node(failed: Callable[[], bool]) -> Iterator[Node]:
    """A cluster with one real node, whose pods really run. `cluster` has the API server."""
    with real_node(failed=failed) as node:
        node.add_gpus(GPUS)
        yield node


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A new namespace in the cluster that the test uses. Its deletion is only asked for."""
    used = next(name for name in GROUPS if name in request.fixturenames)
    found: Cluster | FakeNodes | Node = request.getfixturevalue(used)
    cluster = found if isinstance(found, Cluster) else found.cluster
    name = f"test-{secrets.token_hex(4)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    cluster.client.create("/api/v1/namespaces", body)
    yield name
    cluster.client.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
async def api(api_server: Cluster) -> AsyncIterator[Api]:
    """The agent's client of the API server."""
    async with await Api.open(str(api_server.kubeconfig)) as api:
        yield api


@pytest.fixture(scope="session")
def crds(api_server: Cluster) -> None:
    """The custom resources, served by the API server."""
    custom_resources.install(api_server)


@pytest.fixture(scope="session")
def fake_crds(fake_cluster: FakeNodes) -> None:
    """The custom resources, served by the API server of the fake nodes."""
    custom_resources.install(fake_cluster.cluster)


@pytest.fixture
def frozen(api_server: Cluster, tmp_path: Path) -> Iterator[FrozenRelay]:
    """A relay to the API server that can be frozen."""
    relay = FrozenRelay(api_server, tmp_path)
    yield relay
    relay.close()
