"""A node, the custom resources, and a registry with the example chart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest

from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import MINI_SERVICE, NAMESPACE
from nvcf_agent.kubernetes.crds.definitions import definitions
from nvcf_agent.kubernetes.helm.command import Helm
from tests.kubernetes.cluster.kwok import FakeNodes
from tests.kubernetes.custom_resources import CUSTOM_RESOURCE_DEFINITION
from tests.kubernetes.helm.support import (
    NODE,
    Setting,
)
from tests.support.charts import chart_registry, example_chart
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def fake_node(fake_cluster: FakeNodes) -> Iterator[FakeNodes]:
    """One node with eight GPUs."""
    names_of_nodes = fake_cluster.add(1, NODE)
    yield fake_cluster
    fake_cluster.remove(names_of_nodes)


@pytest.fixture
async def setting(fake_node: FakeNodes, namespace: str) -> AsyncIterator[Setting]:
    """A cluster with the custom resources; instances of the test are removed at its end."""
    cluster = fake_node.cluster
    async with await Api.open(str(cluster.kubeconfig)) as api:
        for each in definitions():
            await api.apply(CUSTOM_RESOURCE_DEFINITION, each)
        await eventually(lambda: _served(api), "the kind MiniService is served")
        async with chart_registry({"words:0.1.0": example_chart()}) as registry:
            yield Setting(cluster, namespace, Helm(str(cluster.tools["helm"])), registry)
        for each in (await api.list(MINI_SERVICE)).items:
            await api.delete(NAMESPACE, each["spec"]["namespace"])
            with suppress(ApiError):
                await api.patch(
                    MINI_SERVICE, each["metadata"]["name"], None, {"metadata": {"finalizers": None}}
                )
                await api.delete(MINI_SERVICE, each["metadata"]["name"])


async def _served(api: Api) -> bool:
    try:
        await api.list(MINI_SERVICE)
    except ApiError:
        return False
    return True
