"""Deployments with the fields and routes of cloud-functions, and other accounts at all of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.models import Instance, InstanceState
from tests.support.platform.gateways import Platform, Version
from tests.support.platform.records import add_instance
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHART: dict[str, Any] = {
    "containerImage": None,
    "helmChart": "https://x/y-1.tgz",
    "helmChartServiceName": "s",
}
SPECIFICATION: dict[str, Any] = {
    "gpu": "H100",
    "instanceType": "NCP.GPU.H100_8x",
    "minInstances": 1,
    "maxInstances": 3,
    "maxRequestConcurrency": 16_384,
    "backend": "group-a",
    "availabilityZones": ["zone-1"],
    "regions": ["us-west-2"],
    "attributes": ["HIPAA"],
    "configuration": {"replicas": 2, "image": {"tag": "1"}},
    "preferredOrder": 7,
    "cpuArch": "arm64",
    "os": "ubuntu",
    "driverVersion": "550.90.07",
    "storage": "80G",
    "systemMemory": "64Gi",
    "gpuMemory": "79Gi",
    "autoscalingConfiguration": {
        "scaleUpDetails": {
            "factor": 1.5,
            "threshold": 60,
            "metric": "utilization",
            "stickiness": {"size": "PT10M", "threshold": "PT5M"},
        },
        "scaleDownDetails": {"factor": 0.5, "threshold": 20, "metric": "utilization"},
    },
    "helmValidationPolicy": {
        "name": "Default",
        "extraKubernetesTypes": [{"group": "g", "version": "v1", "kind": "K"}],
    },
}


def path(version: Version) -> str:
    return f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"


async def deploy(platform: Platform, *specifications: dict[str, Any], **fields: Any) -> tuple[Version, Any]:
    version = await platform.create_version(**fields)
    body = {"deploymentSpecifications": list(specifications)}
    return version, (await platform.call("POST", path(version), body))["deployment"]


async def status_becomes(platform: Platform, version: Version, status: str) -> None:
    async def reached() -> bool:
        function = f"/v2/nvcf/functions/{version.function_id}/versions/{version.id}"
        one = (await platform.call("GET", function))["function"]["status"]
        two = (await platform.call("GET", path(version)))["deployment"]["functionStatus"]
        return bool(one == two == status)

    await eventually(reached, f"the version is {status}")


async def test_every_field_is_kept_and_shown(platform: Platform) -> None:
    version, made = await deploy(platform, SPECIFICATION, **CHART)
    found = (await platform.call("GET", path(version)))["deployment"]
    assert found == made
    assert (found["healthInfo"], found["lastUpdatedAt"]) == ([], found["createdAt"])
    (shown,) = found["deploymentSpecifications"]
    assert shown == {**SPECIFICATION, "clusters": [], "gpuSpecificationId": shown["gpuSpecificationId"]}
    by_id = await platform.call("GET", f"/v2/nvcf/deployments/{made['deploymentId']}")
    assert by_id["deployment"] == made


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"clusters": ["a"]}, "backend"),
        ({"preferredOrder": 0}, "preferredOrder"),
        ({"preferredOrder": 100}, "preferredOrder"),
        ({"maxRequestConcurrency": 16_385}, "maxRequestConcurrency"),
        ({"cpuArch": ""}, "cpuArch"),
        ({"attributes": [1]}, "attributes[0]"),
        ({"configuration": "x"}, "configuration"),
        ({"configuration": json.loads('{"a":' * 65 + "1" + "}" * 65)}, "configuration"),
        ({"helmValidationPolicy": {"name": "None"}}, "helmValidationPolicy.name"),
        (
            {"autoscalingConfiguration": {"scaleUpDetails": {"factor": 1, "threshold": 1}}},
            "autoscalingConfiguration.scaleUpDetails.factor",
        ),
    ],
)
async def test_what_is_refused_is_named(platform: Platform, change: dict[str, Any], field: str) -> None:
    version = await platform.create_version(**CHART)
    body = {"deploymentSpecifications": [{**SPECIFICATION, **change}]}
    problem = await platform.call("POST", path(version), body, expect=400)
    assert problem["field"] == f"deploymentSpecifications[0].{field}"
    assert problem["detail"].startswith("Invalid request: ")


async def test_configuration_is_for_charts_only(platform: Platform) -> None:
    version = await platform.create_version()
    for name in ("configuration", "helmValidationPolicy"):
        body = {"deploymentSpecifications": [{name: SPECIFICATION[name]}]}
        problem = await platform.call("POST", path(version), body, expect=400)
        assert problem["field"] == f"deploymentSpecifications[0].{name}"


async def test_counts_are_changed_by_put_and_patch(platform: Platform) -> None:
    version, made = await deploy(platform, SPECIFICATION, **CHART)
    (name,) = (each["gpuSpecificationId"] for each in made["deploymentSpecifications"])
    counts = {"gpuSpecificationId": name, "gpu": "H100", "minInstances": 2, "maxRequestConcurrency": 4}
    put = (await platform.call("PUT", path(version), {"deploymentSpecifications": [counts]}))["deployment"]
    assert put["deploymentSpecifications"] == [{**made["deploymentSpecifications"][0], **counts}]
    assert put["deploymentId"] == made["deploymentId"]
    one = f"/v2/nvcf/deployments/{made['deploymentId']}/gpu-specifications/{name}"
    body = {"maxInstances": 9, "autoscalingConfigurationPolicy": "PLATFORM_CONFIGURATION"}
    changed = (await platform.call("PATCH", one, body))["gpuSpecification"]
    assert (changed["minInstances"], changed["maxInstances"]) == (2, 9)
    assert "autoscalingConfiguration" not in changed
    found = (await platform.call("GET", path(version)))["deployment"]
    assert found["deploymentSpecifications"] == [changed]
    refused = await platform.call("PATCH", one, {"gpu": "A100"}, expect=400)
    assert refused["field"] == "gpu"
    await platform.call("PATCH", f"{one[:-36]}{new_id()}", body, expect=404)


async def test_other_accounts_learn_nothing(platform: Platform) -> None:
    version, made = await deploy(platform, {})
    instance = await add_instance(platform, version, InstanceState.RUNNING)
    await status_becomes(platform, version, "ACTIVE")
    by_id = f"/v2/nvcf/deployments/{made['deploymentId']}"
    name = made["deploymentSpecifications"][0]["gpuSpecificationId"]
    attacks: list[tuple[str, str, Any]] = [
        ("GET", path(version), None),
        ("POST", path(version), {"deploymentSpecifications": [{}]}),
        ("PUT", path(version), {"deploymentSpecifications": [{}]}),
        ("DELETE", f"{path(version)}?graceful=false", None),
        ("GET", by_id, None),
        ("PATCH", f"{by_id}/gpu-specifications/{name}", {"minInstances": 0}),
        ("DELETE", f"/v2/nvcf/instances/{instance.id}", None),
    ]
    for method, target, body in attacks:
        existing = await platform.call(method, target, body, key="foreign", expect=404)
        ids = (version.function_id, version.id, made["deploymentId"], instance.id)
        for known in ids:
            target = target.replace(known, new_id())
        missing = await platform.call(method, target, body, key="foreign", expect=404)
        words = [" ".join(each["detail"].replace("'", " ").split()[:2]) for each in (existing, missing)]
        assert words[0] == words[1], "existing and missing ones look alike"
    for method, target, body in attacks:
        if method != "GET":
            await platform.call(method, target, body, key="list", expect=403)
    assert (await platform.call("GET", path(version)))["deployment"] == {
        **made,
        "functionStatus": "ACTIVE",
    }


async def test_statuses_follow_the_instances(platform: Platform) -> None:
    version, _ = await deploy(platform, {"minInstances": 2, "maxInstances": 2})
    await status_becomes(platform, version, "DEPLOYING")
    first = await add_instance(platform, version, InstanceState.RUNNING, ready_at=1.0)
    await status_becomes(platform, version, "DEGRADING")
    second = await add_instance(platform, version, InstanceState.RUNNING, ready_at=1.0)
    await status_becomes(platform, version, "ACTIVE")
    for instance in (first, second):
        await platform.call("DELETE", f"/v2/nvcf/instances/{instance.id}", key="admin", expect=204)
    await status_becomes(platform, version, "DEGRADING")
    await add_instance(
        platform, version, InstanceState.FAILED, ready_at=1.0, reason="crash: exit code 1", gpu="CPU"
    )
    await status_becomes(platform, version, "ERROR")
    health = (await platform.call("GET", path(version)))["deployment"]["healthInfo"]
    assert [(each["error"], each["backend"]) for each in health] == [("crash: exit code 1", "local")]


async def listed(platform: Platform, version: Version) -> list[dict[str, Any]]:
    answer = await platform.call("GET", f"/v2/nvcf/instances?functionVersionId={version.id}")
    return list(answer["instances"])


async def draining(platform: Platform, instance: Instance, version: Version) -> bool:
    return any(
        each["instanceId"] == instance.id and "drainingSince" in each
        for each in await listed(platform, version)
    )


async def test_undeploying_without_grace_ends_instances_at_once(platform: Platform) -> None:
    for query, ends in (("", False), ("?graceful=true", False), ("?graceful=false", True)):
        version, _ = await deploy(platform, {})
        instance = await add_instance(platform, version, InstanceState.RUNNING)
        await status_becomes(platform, version, "ACTIVE")
        await platform.call("DELETE", f"{path(version)}?graceful=maybe", expect=400)
        answer = await platform.call("DELETE", path(version) + query)
        assert answer["deployment"]["functionVersionId"] == answer["function"]["versionId"] == version.id
        if ends:

            async def drains(instance: Instance = instance, version: Version = version) -> bool:
                return await draining(platform, instance, version)

            await eventually(drains, "the instance drains")
        else:
            assert not await draining(platform, instance, version)
