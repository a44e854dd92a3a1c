"""The test cluster's API server: what the product relies on, tried with a resource of the tests' own."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kubernetes.cluster.client import ApiProblem, Client, Object
from tests.kubernetes.cluster.clusters import Cluster
from tests.kubernetes.cluster.gpus import A10G
from tests.kubernetes.cluster.kwok import FakeNodes, Shape
from tests.kubernetes.cluster.processes import wait_until

GROUP = "testbed.example.com"


@pytest.fixture(scope="module")
def widgets(api_server: Cluster) -> Iterator[str]:
    """The plural name of a new kind with a schema, a rule, a default, and a status."""
    plural = f"widgets{secrets.token_hex(3)}"
    client = api_server.client
    client.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", _definition(plural))
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{GROUP}"
    wait_until(lambda: client.find(f"/apis/{GROUP}/v1/{plural}") is not None, "the new kind is served")
    yield plural
    client.delete(path)


def _definition(plural: str) -> Object:
    part = {"type": "object", "required": ["key"], "properties": {"key": {"type": "string"}}}
    parts = {
        "type": "array",
        "items": part,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["key"],
    }
    spec = {
        "type": "object",
        "properties": {
            "size": {"type": "integer", "minimum": 0, "default": 1},
            "most": {"type": "integer"},
            "parts": parts,
        },
        "x-kubernetes-validations": [
            {"rule": "!has(self.most) || self.size <= self.most", "message": "too big"}
        ],
    }
    status = {"type": "object", "properties": {"size": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"spec": spec, "status": status}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": plural.title(), "singular": plural},
            "versions": [version],
        },
    }


def _widget(plural: str, name: str, **spec: Any) -> Object:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": plural.title(),
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.fixture
def place(widgets: str, namespace: str) -> str:
    """The path of the new kind's collection in the test's namespace."""
    return f"/apis/{GROUP}/v1/namespaces/{namespace}/{widgets}"


def test_schema_default_and_rule_hold(api_server: Cluster, widgets: str, place: str) -> None:
    client = api_server.client
    assert client.create(place, _widget(widgets, "a"))["spec"] == {"size": 1}
    with pytest.raises(ApiProblem, match="should be greater than or equal to 0"):
        client.create(place, _widget(widgets, "b", size=-1))
    with pytest.raises(ApiProblem, match="too big"):
        client.create(place, _widget(widgets, "b", size=3, most=2))
    with pytest.raises(ApiProblem, match="unknown field"):
        client.create(f"{place}?fieldValidation=Strict", _widget(widgets, "b", colour="red"))


def test_server_side_apply_merges_by_owner(api_server: Cluster, widgets: str, place: str) -> None:
    client, path = api_server.client, f"{place}/a"
    client.apply(path, _widget(widgets, "a", size=1, parts=[{"key": "x"}]), "first")
    merged = client.apply(path, _widget(widgets, "a", parts=[{"key": "y"}]), "second")
    assert merged["spec"] == {"size": 1, "parts": [{"key": "x"}, {"key": "y"}]}
    with pytest.raises(ApiProblem, match="conflict") as refused:
        client.apply(path, _widget(widgets, "a", size=2), "second")
    assert refused.value.status == 409
    assert client.apply(path, _widget(widgets, "a", size=2), "second", force=True)["spec"]["size"] == 2


def test_status_is_a_part_of_its_own(api_server: Cluster, widgets: str, place: str) -> None:
    client = api_server.client
    client.create(place, _widget(widgets, "a"))
    client.patch(f"{place}/a", {"status": {"size": 1}})
    assert "status" not in client.get(f"{place}/a")
    client.patch(f"{place}/a/status", {"spec": {"size": 5}, "status": {"size": 2}})
    changed = client.get(f"{place}/a")
    assert (changed["spec"], changed["status"]) == ({"size": 1}, {"size": 2})


def test_finalizer_keeps_an_object_until_it_is_removed(api_server: Cluster, widgets: str, place: str) -> None:
    client = api_server.client
    body = _widget(widgets, "a")
    body["metadata"]["finalizers"] = [f"{GROUP}/wait"]
    client.create(place, body)
    client.delete(f"{place}/a")
    assert client.get(f"{place}/a")["metadata"]["deletionTimestamp"]
    client.patch(f"{place}/a", {"metadata": {"finalizers": None}})
    assert client.find(f"{place}/a") is None


def test_controllers_collect_what_a_deleted_owner_leaves(api_server: Cluster, namespace: str) -> None:
    """The owner is of a built-in kind: of a new one the collector learns within half a minute."""
    client, maps = api_server.client, f"/api/v1/namespaces/{namespace}/configmaps"
    owner = client.create(maps, {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    client.create(maps, {"metadata": {"name": "owned", "ownerReferences": [reference]}})
    client.delete(f"{maps}/owner")
    wait_until(lambda: client.find(f"{maps}/owned") is None, "the owned object is collected")


def test_token_of_a_service_account_may_do_nothing_by_itself(api_server: Cluster, namespace: str) -> None:
    client = api_server.client
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    wait_until(lambda: client.find(account), "the controllers make the namespace's account")
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = client.create(f"{account}/token", request)["status"]["token"]
    bearer = Client(api_server.kubeconfig, token=token)
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    who = bearer.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    assert who["status"]["userInfo"]["username"] == f"system:serviceaccount:{namespace}:default"
    with pytest.raises(ApiProblem) as refused:
        bearer.get(f"/api/v1/namespaces/{namespace}/secrets")
    assert refused.value.status == 403


def test_kubectl_and_helm_reach_the_cluster(api_server: Cluster, namespace: str) -> None:
    assert "default" in api_server.kubectl("get", "namespaces", "-o", "name")
    assert api_server.helm("list", "--namespace", namespace, "-o", "json").strip() == "[]"


def test_fake_nodes_run_what_fits_and_only_that(kwok_nodes: FakeNodes, namespace: str) -> None:
    client = kwok_nodes.cluster.client
    (big,) = kwok_nodes.add(1)
    (small,) = kwok_nodes.add(1, Shape(gpu=A10G, gpus=1))
    labels = client.get(f"/api/v1/nodes/{small}")["metadata"]["labels"]
    assert (labels["nvidia.com/gpu.product"], labels["nvidia.com/gpu.count"]) == ("NVIDIA-A10G", "1")
    pods = f"/api/v1/namespaces/{namespace}/pods"
    for name, gpus in (("fits", 8), ("too-big", 9)):
        limits = {"nvidia.com/gpu": str(gpus)}
        container = {"name": "c", "image": "none", "resources": {"limits": limits}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"containers": [container]},
        }
        wait_until(
            lambda: client.find(f"/api/v1/namespaces/{namespace}/serviceaccounts/default"), "the account"
        )
        client.create(pods, pod)
    wait_until(lambda: client.get(f"{pods}/fits")["status"]["phase"] == "Running", "the pod that fits runs")
    assert client.get(f"{pods}/fits")["spec"]["nodeName"] == big

    def refused() -> bool:
        conditions = client.get(f"{pods}/too-big")["status"].get("conditions", ())
        return any("Insufficient nvidia.com/gpu" in each.get("message", "") for each in conditions)

    wait_until(refused, "the pod that does not fit is unschedulable")
