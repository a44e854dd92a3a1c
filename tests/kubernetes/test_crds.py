"""The custom resources at a real API server: what it fills in, what it refuses, and what kubectl shows."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import ICMS_REQUEST, MINI_SERVICE, NVCF_BACKEND, Kind
from nvcf_agent.kubernetes.request_objects import request_object
from nvcf_agent.state.request_status import RequestStatus
from tests.kubernetes.cluster.clusters import Cluster
from tests.unit.agent.orders import order

pytestmark = pytest.mark.usefixtures("crds")


@pytest.fixture
async def mini_service(api: Api) -> AsyncIterator[Object]:
    """A MiniService that is gone after the test."""
    name = f"sr-{secrets.token_hex(4)}-miniservice"
    spec = {"namespace": "sr-1", "icmsRequestName": "sr-1", "helmChartConfig": {"url": "oci://charts/echo"}}
    yield await api.create(MINI_SERVICE, {"metadata": {"name": name}, "spec": spec})
    await api.delete(MINI_SERVICE, name)


async def set_status(api: Api, kind: Kind, item: Object, **status: Any) -> Object:
    metadata = item["metadata"]
    patch = {"status": status}
    return await api.patch(kind, metadata["name"], metadata.get("namespace"), patch, part="status")


async def test_what_a_request_asked_for_is_never_changed(api: Api, namespace: str) -> None:
    request = await api.create(ICMS_REQUEST, request_object(order("r-1"), namespace))
    assert request["spec"]["functionDetails"]["functionType"] == "DEFAULT"
    for name in ("requestId", "ncaId", "action"):
        with pytest.raises(ApiError, match="cannot be changed") as refused:
            await api.patch(ICMS_REQUEST, "sr-r-1", namespace, {"spec": {name: "other"}})
        assert refused.value.is_final
    # Members of NVIDIA's that we do not know stay.
    patched = await api.patch(ICMS_REQUEST, "sr-r-1", namespace, {"spec": {"newOfTheirs": {"a": 1}}})
    assert patched["spec"]["newOfTheirs"] == {"a": 1}
    await api.patch(ICMS_REQUEST, "sr-r-1", namespace, {"metadata": {"finalizers": []}})


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"action": "RequestSpotInstances"}, "requestId: Required"),
        ({"requestId": "a/b", "action": "x"}, "requestId in body should match"),
        (
            {"requestId": "a", "action": "x", "creationMsgInfo": {"instanceCount": "two"}},
            "must be of type int",
        ),
    ],
)
async def test_requests_of_another_form_are_refused(
    api: Api, namespace: str, spec: dict[str, Any], text: str
) -> None:
    with pytest.raises(ApiError, match=text):
        await api.create(ICMS_REQUEST, {"metadata": {"name": "x", "namespace": namespace}, "spec": spec})


async def test_a_request_goes_from_pending_to_completed_or_failed(
    api_server: Cluster, api: Api, namespace: str
) -> None:
    request = request_object(order("r", gpu="H100"), namespace)
    del request["metadata"]["finalizers"]
    request = await api.create(ICMS_REQUEST, request)
    for phase, status in (
        ("Pending", RequestStatus.PENDING),
        ("Pending", RequestStatus.CACHING),
        ("Completed", RequestStatus.COMPLETED),
        ("Failed", RequestStatus.FAILED),
    ):
        await set_status(api, ICMS_REQUEST, request, phase=phase, requestStatus=status.value)
        shown = api_server.kubectl("get", "icmsrequests", "-n", namespace).splitlines()
        assert shown[0].split() == ["NAME", "PHASE", "STATUS", "GPU", "AGE"]
        assert shown[1].split()[:3] == ["sr-r", phase, status.value]
    with pytest.raises(ApiError, match="Unsupported value"):
        await set_status(api, ICMS_REQUEST, request, requestStatus="RequestHappy")
    await set_status(api, ICMS_REQUEST, request, requestStatus="RequestCompleted")
    with pytest.raises(ApiError, match="is never pending again"):
        await set_status(api, ICMS_REQUEST, request, requestStatus="RequestPending")


async def test_a_failed_mini_service_stays_so(api_server: Cluster, api: Api, mini_service: Object) -> None:
    name = mini_service["metadata"]["name"]
    for phase in ("Installing", "Running", "Failed"):
        await set_status(api, MINI_SERVICE, mini_service, phase=phase)
        shown = api_server.kubectl("get", "miniservices", name).splitlines()
        assert shown[0].split()[:2] == ["NAME", "PHASE"]
        assert shown[1].split()[:2] == [name, phase]
    with pytest.raises(ApiError, match="has ended"):
        await set_status(api, MINI_SERVICE, mini_service, phase="Running")
    for part in ({"namespace": "sr-2"}, {"icmsRequestName": "sr-2"}):
        with pytest.raises(ApiError, match="cannot be changed"):
            await api.patch(MINI_SERVICE, name, None, {"spec": part})
    changed = {"helmChartConfig": {"values": {"size": 2}}}
    patched = await api.patch(MINI_SERVICE, name, None, {"spec": changed})
    assert patched["spec"]["helmChartConfig"]["values"] == {"size": 2}
    condition = {"type": "ObjectsHealthy", "status": "Maybe", "reason": "x", "lastTransitionTime": "now"}
    with pytest.raises(ApiError, match="Unsupported value"):
        await set_status(api, MINI_SERVICE, mini_service, conditions=[condition])


async def test_a_backend_has_one_identity_and_one_way_to_find_gpus(
    api_server: Cluster, api: Api, namespace: str
) -> None:
    spec: dict[str, Any] = {"clusterConfig": {"clusterID": "one", "clusterName": "here"}}
    backend = await api.create(
        NVCF_BACKEND, {"metadata": {"name": "nvcf", "namespace": namespace}, "spec": spec}
    )
    settings = backend["spec"]["clusterConfig"]
    assert (settings["requestsNamespace"], settings["systemNamespace"]) == ("nvcf-backend", "nvca-system")
    assert backend["spec"]["clusterSource"] == "self-hosted"
    with pytest.raises(ApiError, match="one identity"):
        await api.patch(NVCF_BACKEND, "nvcf", namespace, {"spec": {"clusterConfig": {"clusterID": "two"}}})
    both = {"dynamic": {}, "static": {"gpuConfig": "[]"}}
    with pytest.raises(ApiError, match="either dynamic or static"):
        await api.patch(NVCF_BACKEND, "nvcf", namespace, {"spec": {"clusterConfig": {"gpuDiscovery": both}}})
    await set_status(api, NVCF_BACKEND, backend, version="1.2.3", agentStatus="Healthy", natsURL="kept")
    shown = json.loads(api_server.kubectl("get", "nvcfbackends", "-n", namespace, "-o", "json"))["items"][0]
    assert shown["status"]["natsURL"] == "kept"
    table = api_server.kubectl("get", "nvcfbackends", "-n", namespace).splitlines()
    assert table[0].split() == ["NAME", "AGE", "VERSION", "HEALTH", "CLUSTER"]
    assert table[1].split()[2:] == ["1.2.3", "Healthy", "here"]
