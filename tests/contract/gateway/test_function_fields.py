"""Functions with every field, and deployments that no backend would honour."""

from __future__ import annotations

import time
from typing import Any

import pytest

from nvcf_proto.compute import Cluster
from nvcf_proto.models import InstanceState
from tests.support.platform.gateways import Platform, Version
from tests.support.platform.records import add_instance, known_clusters
from tests.support.waiting import eventually
from tests.unit.gateway.test_function_bodies import EVERYTHING

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROCESS = {"python": "/usr/bin/python3", "file": "/srv/function.py", "workingDirectory": "/srv"}


def path(version: Version, kind: str = "functions") -> str:
    prefix = "/v2/nvcf/deployments/functions" if kind == "deployments" else "/v2/nvcf/functions"
    return f"{prefix}/{version.function_id}/versions/{version.id}"


async def test_a_function_is_shown_with_all_it_was_created_with(platform: Platform) -> None:
    body = {**EVERYTHING, "telemetries": None}
    created = (await platform.call("POST", "/v2/nvcf/functions", body))["function"]
    version = Version(created["id"], created["versionId"])
    shown = (await platform.call("GET", path(version)))["function"]
    for name, value in body.items():
        if value is not None and name != "rateLimit":
            assert shown[name] == value, name
    assert shown["rateLimit"].items() >= EVERYTHING["rateLimit"].items()
    assert shown["activeInstances"] == []
    assert created == {name: value for name, value in shown.items() if name != "activeInstances"}


async def test_a_chart_is_a_function(platform: Platform) -> None:
    chart = {"helmChart": "https://helm.example/charts/echo-1.0.0.tgz", "helmChartServiceName": "entrypoint"}
    created = (await platform.call("POST", "/v2/nvcf/functions", {"name": "chart", **chart}))["function"]
    assert created.items() >= chart.items()
    assert created["apiBodyFormat"] == "CUSTOM"


async def test_problems_have_the_type_and_words_of_the_management_api(platform: Platform) -> None:
    problem = await platform.call("POST", "/v2/nvcf/functions", {"name": "f"}, expect=400)
    assert problem == {
        "type": "urn:nv-boot:problem-details:bad-request",
        "title": "Bad Request",
        "status": 400,
        "detail": "Invalid request: containerImage: "
        "give one of containerImage, helmChart, models and process",
        "field": "containerImage",
    }
    version = await platform.create_version()
    missing = await platform.call("GET", path(version), key="foreign", expect=404)
    assert missing["type"] == "urn:nv-boot:problem-details:not-found"
    assert missing["detail"] == (
        f"Function id '{version.function_id}', version '{version.id}': Not found in account 'account-two'"
    )


async def test_active_instances_are_those_that_have_not_ended(platform: Platform) -> None:
    version = await platform.deployed_version()
    running = await add_instance(platform, version, InstanceState.RUNNING, gpu="H100")
    await add_instance(platform, version, InstanceState.COMPLETED)

    async def listed() -> list[dict[str, Any]]:
        function = (await platform.call("GET", path(version)))["function"]
        return list(function["activeInstances"])

    async def found() -> bool:
        return bool(await listed())

    await eventually(found, "the gateway knows the instance")
    only = (await listed())[0]
    assert (only["instanceId"], only["gpu"], only["location"]) == (running.id, "H100", "local")


@pytest.mark.parametrize(
    ("fields", "field", "backend"),
    [
        ({}, "containerImage", "kubernetes"),
        (
            {"containerImage": None, "helmChart": "https://x/y-1.tgz", "helmChartServiceName": "s"},
            "helmChart",
            "kubernetes",
        ),
        ({"containerImage": None, "process": PROCESS, "health": {}}, "health", "kubernetes"),
        ({"containerImage": None, "process": PROCESS, "inferencePort": 8000}, "inferencePort", "kubernetes"),
    ],
)
async def test_what_no_permitted_backend_honours_is_refused(
    platform: Platform, fields: dict[str, Any], field: str, backend: str
) -> None:
    version = await platform.create_version(**fields)
    async with known_clusters(platform, Cluster("local", "local", time.time())):
        body: dict[str, Any] = {"deploymentSpecifications": [{}]}

        async def refused() -> bool:
            clusters = (await platform.call("GET", "/v2/nvcf/clusters"))["clusters"]
            return bool(clusters)

        await eventually(refused, "the gateway knows the cluster")
        problem = await platform.call("POST", path(version, "deployments"), body, expect=400)
    assert problem["field"] == field
    assert f"'{backend}'" in problem["detail"]
    await platform.call("GET", path(version, "deployments"), expect=404)
