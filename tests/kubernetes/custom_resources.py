"""The custom resources of this project in a cluster for tests."""

from __future__ import annotations

from nvcf_agent.kubernetes.client.kinds import ICMS_REQUEST, MINI_SERVICE, NVCF_BACKEND, Kind
from nvcf_agent.kubernetes.crds.definitions import definitions
from tests.kubernetes.cluster.clusters import Cluster
from tests.kubernetes.cluster.processes import wait_until

CUSTOM_RESOURCE_DEFINITION = Kind(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)


def install(cluster: Cluster) -> None:
    """Bring the definitions into a cluster, and wait until its API server serves the kinds."""
    client = cluster.client
    for definition in definitions():
        path = CUSTOM_RESOURCE_DEFINITION.path(name=definition["metadata"]["name"])
        client.apply(path, definition, "tests", force=True)
    kinds = (ICMS_REQUEST, MINI_SERVICE, NVCF_BACKEND)
    wait_until(lambda: all(client.find(each.path()) for each in kinds), "the custom resources are served")
