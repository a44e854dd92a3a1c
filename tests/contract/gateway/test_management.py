"""Functions, versions and deployments over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.platform.gateways import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROCESS = {"python": "/usr/bin/python3", "file": "/srv/function.py", "workingDirectory": "/srv"}


async def test_life_of_a_function(platform: Platform) -> None:
    body = {"name": "reader", "inferenceUrl": "/read", "tags": ["a"], "process": PROCESS}
    created = (await platform.call("POST", "/v2/nvcf/functions", body))["function"]
    assert created["status"] == "INACTIVE"
    assert created["name"] == "reader"
    assert created["ncaId"] == "account-one"
    base = f"/v2/nvcf/functions/{created['id']}"
    second = (await platform.call("POST", base + "/versions", {"containerImage": "example/reader:2"}))[
        "function"
    ]
    assert (second["id"], second["name"]) == (created["id"], "reader")
    assert second["versionId"] != created["versionId"]
    listed = (await platform.call("GET", base + "/versions"))["functions"]
    assert [each["versionId"] for each in listed] == [created["versionId"], second["versionId"]]
    assert (await platform.call("GET", base))["functions"] == listed
    all_functions = (await platform.call("GET", "/v2/nvcf/functions"))["functions"]
    assert {created["versionId"], second["versionId"]} <= {each["versionId"] for each in all_functions}
    foreign = (await platform.call("GET", "/v2/nvcf/functions", key="foreign"))["functions"]
    assert foreign == []

    deployment = f"/v2/nvcf/deployments/functions/{created['id']}/versions/{created['versionId']}"
    specification = {"minInstances": 2, "maxInstances": 3, "maxRequestConcurrency": 8}
    await platform.call("GET", deployment, expect=404)
    made = (await platform.call("POST", deployment, {"deploymentSpecifications": [specification]}))[
        "deployment"
    ]
    assert made["functionStatus"] == "DEPLOYING"
    shown = made["deploymentSpecifications"][0]
    assert shown.pop("gpuSpecificationId")
    assert shown == {
        "gpu": "CPU", "instanceType": "process", "clusters": [], "regions": [], **specification,
    }  # fmt: skip
    found = (await platform.call("GET", deployment))["deployment"]
    assert {**found, "deploymentSpecifications": None} == {**made, "deploymentSpecifications": None}
    await platform.call("POST", deployment, {"deploymentSpecifications": [specification]}, expect=409)
    changed = {
        "deploymentSpecifications": [{"minInstances": 0, "maxInstances": 5}],
        "scaling": {"waitSlo": 2.5},
    }
    updated = (await platform.call("PUT", deployment, changed))["deployment"]
    assert updated["deploymentSpecifications"][0]["maxInstances"] == 5
    assert updated["scaling"] == {"waitSlo": 2.5, "keepWarm": 0}
    assert updated["createdAt"] == made["createdAt"]
    version_path = f"{base}/versions/{created['versionId']}"
    await platform.call("DELETE", version_path, expect=409)
    await platform.call("DELETE", base, expect=409)
    assert (await platform.call("DELETE", deployment))["deployment"]["functionStatus"] == "INACTIVE"
    await platform.call("DELETE", version_path, expect=204)
    await platform.call("GET", version_path, expect=404)
    await platform.call("DELETE", base, expect=204)
    await platform.call("GET", base, expect=404)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": 1, "containerImage": "x"}, "name"),
        ({"name": "-bad-", "containerImage": "x"}, "name"),
        ({"name": "a" * 200, "containerImage": "x"}, "name"),
        ({"name": "f"}, "containerImage"),
        ({"name": "f", "containerImage": "x", "process": PROCESS}, "containerImage"),
        ({"name": "f", "process": {**PROCESS, "file": "relative.py"}}, "process.file"),
        ({"name": "f", "process": {**PROCESS, "handler": "a b"}}, "process.handler"),
        ({"name": "f", "process": {**PROCESS, "environment": {"A": 1}}}, "process.environment.A"),
        ({"name": "f", "containerImage": "x", "inferenceUrl": "no-slash"}, "inferenceUrl"),
        ({"name": "f", "containerImage": "x", "functionType": "OTHER"}, "functionType"),
        ({"name": "f", "containerImage": "x", "tags": "a"}, "tags"),
        ({"name": "f", "containerImage": "x", "tags": [1]}, "tags[0]"),
        ({"name": "f", "containerImage": "x", "surprise": 1}, "surprise"),
    ],
)
async def test_bad_functions_are_400_naming_the_field(platform: Platform, body: Any, field: str) -> None:
    problem = await platform.call("POST", "/v2/nvcf/functions", body, expect=400)
    assert problem["field"] == field
    assert field in problem["detail"]


@pytest.mark.parametrize(
    ("specifications", "field"),
    [
        (None, "deploymentSpecifications"),
        ([], "deploymentSpecifications"),
        ([1], "deploymentSpecifications[0]"),
        ([{"minInstances": -1}], "deploymentSpecifications[0].minInstances"),
        ([{"minInstances": 3, "maxInstances": 2}], "deploymentSpecifications[0].maxInstances"),
        ([{}, {"maxRequestConcurrency": 0}], "deploymentSpecifications[1].maxRequestConcurrency"),
        ([{"minInstances": True}], "deploymentSpecifications[0].minInstances"),
        ([{"attributes": {"a": 1}}], "deploymentSpecifications[0].attributes.a"),
    ],
)
async def test_bad_deployments_are_400_naming_the_field(
    platform: Platform, specifications: Any, field: str
) -> None:
    version = await platform.create_version()
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    problem = await platform.call("POST", path, {"deploymentSpecifications": specifications}, expect=400)
    assert problem["field"] == field


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe", b'{"name":' + b"[" * 50_000, b'"x"', b"{}" * 600_000]
)
async def test_bodies_that_are_no_json_object(platform: Platform, data: bytes) -> None:
    url = platform.gateway.url + "/v2/nvcf/functions"
    async with platform.session.post(url, data=data, headers=platform.authorization()) as response:
        assert response.status in (400, 413)
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        ({"waitSlo": 0}, "scaling.waitSlo"),
        ({"targetUtilisation": 2}, "scaling.targetUtilisation"),
        ({"scaleUpDetails": {"factor": 2, "threshold": 80}}, "scaling.scaleUpDetails"),
        ({"surprise": 1}, "scaling.surprise"),
        (
            {
                "scaleUpDetails": {"factor": 2, "threshold": 80, "stickiness": {"size": 10, "threshold": 10}},
                "scaleDownDetails": {"factor": 0.5, "threshold": 20},
            },
            "scaling.scaleUpDetails.stickiness.threshold",
        ),
    ],
)
async def test_bad_scaling_settings_are_400_naming_the_field(
    platform: Platform, scaling: Any, field: str
) -> None:
    version = await platform.deployed_version()
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    body = {"deploymentSpecifications": [{}], "scaling": scaling}
    problem = await platform.call("PUT", path, body, expect=400)
    assert problem["field"] == field
