"""Creation messages of images and charts (docs/reference/protocol.md, section 6.3)."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from nvcf_proto.models import DeploymentSpecification
from tests.support.platform.icms import SPECIFICATION, ComputePlane

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

IMAGE = "registry.example/echo:1"
CHART = "https://helm.example/charts/echo-1.tgz"
LOGIN = base64.b64encode(b"robot:password").decode()


def read(text: str) -> Any:
    return json.loads(base64.b64decode(text))


async def test_the_accounts_logins_for_registries_travel_with_images_and_charts(plane: ComputePlane) -> None:
    """6.3: CONTAINER_REGISTRIES_CREDENTIALS and HELM_REGISTRIES_CREDENTIALS, each for its own registries."""
    for host, kind in (("registry.example", "CONTAINER"), ("helm.example", "HELM")):
        body = {
            "registryHostname": host,
            "secret": {"name": "robot", "value": LOGIN},
            "artifactTypes": [kind],
        }
        await plane.platform.call("POST", "/v2/nvcf/registry-credentials", body)
    agent, version = await plane.cluster(), await plane.version(containerImage=IMAGE)
    await plane.order(version, agent.cluster_id)
    found = (await agent.creation()).environment
    assert read(found["CONTAINER_REGISTRIES_CREDENTIALS"]) == {
        "k8sSecrets": [{"auths": {"registry.example": {"auth": LOGIN}}}]
    }
    assert read(found["HELM_REGISTRIES_CREDENTIALS"]) == {
        "k8sSecrets": [{"auths": {"helm.example": {"auth": LOGIN}}}]
    }


async def test_an_image_reads_its_secrets_with_the_token_of_its_message(plane: ComputePlane) -> None:
    """6.3, 6.9: SECRETS_ASSERTION_TOKEN is good for the version's secrets at ESS_FQDN."""
    secret = {"name": "API_TOKEN", "value": "very secret"}
    agent, version = await plane.cluster(), await plane.version(containerImage=IMAGE, secrets=[secret])
    await plane.order(version, agent.cluster_id)
    found = (await agent.creation()).environment
    assert found["FUNCTION_SECRETS_PRESENT"] == "true"
    headers = {"X-ESS-Token": found["SECRETS_ASSERTION_TOKEN"], "X-ESS-Namespace": "nvcf"}
    url = f"{found['ESS_FQDN']}/v1/functions/{version.function_id}/versions/{version.id}"
    async with plane.platform.session.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert (await response.json())["data"]["data"] == {"API_TOKEN": "very secret"}
    other = await plane.version(containerImage=IMAGE, secrets=[secret])
    url = f"{found['ESS_FQDN']}/v1/functions/{other.function_id}/versions/{other.id}"
    async with plane.platform.session.get(url, headers=headers) as response:
        assert response.status == 403


async def test_a_process_gets_no_logins_and_no_secrets_token(plane: ComputePlane) -> None:
    """6.3: the agent of a process fetches its secrets itself."""
    process = {"python": "/usr/bin/python3", "file": "/srv/f.py", "workingDirectory": "/srv"}
    secret = {"name": "API_TOKEN", "value": "very secret"}
    agent = await plane.cluster()
    version = await plane.version(containerImage=None, process=process, secrets=[secret])
    await plane.order(version, agent.cluster_id)
    found = (await agent.creation()).environment
    assert not {"SECRETS_ASSERTION_TOKEN", "CONTAINER_REGISTRIES_CREDENTIALS", "INFERENCE_PORT"} & set(found)


async def test_a_chart_travels_with_its_values(plane: ComputePlane) -> None:
    """6.3: helmChart, configuration, and the service that is called."""
    agent = await plane.cluster()
    version = await plane.platform.create_version(
        containerImage=None, helmChart=CHART, helmChartServiceName="front"
    )
    await plane.platform.deploy(version, **SPECIFICATION, configuration={"replicas": 2})
    path = f"{version.function_id}/versions/{version.id}"
    deployed = await plane.platform.call("GET", f"/v2/nvcf/deployments/functions/{path}")
    digest = DeploymentSpecification(configuration={"replicas": 2}).digest
    specification = f"0-H100-NCP.GPU.H100_1x-1x0{digest}"
    await plane.order(version, agent.cluster_id, specification=specification)
    created = await agent.creation()
    assert created.launch["helmChart"] == CHART
    assert "containerImage" not in created.launch
    assert read(created.launch["configuration"]) == {"replicas": 2}
    assert created.environment["HELM_CHART_INFERENCE_SERVICE_NAME"] == "front"
    shown = deployed["deployment"]
    assert created.launch["deploymentId"] == shown["deploymentId"]
    assert created.launch["gpuSpecificationId"] == shown["deploymentSpecifications"][0]["gpuSpecificationId"]
