"""Creation messages of images and charts (docs/reference/protocol.md, section 6.3)."""

from __future__ import annotations

import base64
import json
import time
from functools import partial
from typing import Any

import grpc.aio
import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.models import DeploymentSpecification
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.platform.icms import SPECIFICATION, ComputePlane
from tests.support.waiting import eventually

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


async def test_without_settings_there_are_no_images_beside_the_functions(plane: ComputePlane) -> None:
    """6.3: a line without a value would be an image without a name."""
    agent, version = await plane.cluster(), await plane.version(containerImage=IMAGE)
    await plane.order(version, agent.cluster_id)
    found = (await agent.creation()).environment
    assert not {"UTILS_CONTAINER", "INIT_CONTAINER", "SIDECAR_REGISTRY_CREDENTIAL"} & set(found)


async def test_models_and_resources_travel_with_the_logins_for_their_hosts(plane: ComputePlane) -> None:
    """6.3: models, resources, cacheHandle and logins; 1.2: the worker hears of the same files."""
    body = {
        "registryHostname": "models.example",
        "secret": {"name": "robot", "value": LOGIN},
        "artifactTypes": ["MODEL", "RESOURCE"],
    }
    await plane.platform.call("POST", "/v2/nvcf/registry-credentials", body)
    model = {"name": "llama", "version": "1", "uri": "https://models.example/org/llama%201.gguf?raw=1"}
    resource = {"name": "prompts", "version": "7", "uri": "s3://bucket/prompts.tar"}
    fields = {"containerImage": IMAGE, "models": [model], "resources": [resource]}
    agent, version, same = await plane.cluster(), *[await plane.version(**fields) for _ in range(2)]
    await plane.order(version, agent.cluster_id)
    created = await agent.creation()
    assert read(created.launch["models"]) == [model]
    assert read(created.launch["resources"]) == [resource]
    assert created.launch["cacheArtifacts"] is False
    assert read(created.environment["ARTIFACT_REGISTRIES_CREDENTIALS"]) == {
        "k8sSecrets": [{"auths": {"models.example": {"auth": LOGIN}}}]
    }
    await plane.order(same, agent.cluster_id)
    assert (await agent.creation()).launch["cacheHandle"] == created.launch["cacheHandle"]
    found = await artifacts(plane.platform.gateway.grpc, created.environment["NVCF_WORKER_TOKEN"])
    assert found == [
        ("llama", "1", "MODEL", "llama 1.gguf", model["uri"]),
        ("prompts", "7", "RESOURCE", "prompts.tar", resource["uri"]),
    ]


async def test_an_image_without_models_says_nothing_of_them(plane: ComputePlane) -> None:
    """6.3: models, resources, cacheHandle and their logins are optional."""
    agent, version = await plane.cluster(), await plane.version(containerImage=IMAGE)
    await plane.order(version, agent.cluster_id)
    created = await agent.creation()
    assert not {"models", "resources", "cacheHandle", "workerMode", "prefetch"} & set(created.launch)
    assert "ARTIFACT_REGISTRIES_CREDENTIALS" not in created.environment
    assert await artifacts(plane.platform.gateway.grpc, created.environment["NVCF_WORKER_TOKEN"]) == []


@pytest.mark.parametrize("mode", ["library", "sidecar"])
async def test_an_image_says_whether_the_worker_is_in_it(plane: ComputePlane, mode: str) -> None:
    """6.3 [ext]: workerMode, and prefetch of the deployment."""
    agent = await plane.cluster()
    version = await plane.platform.create_version(containerImage=IMAGE, workerMode=mode)
    await plane.platform.deploy(version, **SPECIFICATION, prefetch=True)
    await plane.order(version, agent.cluster_id)
    launch = (await agent.creation()).launch
    assert (launch["workerMode"], launch["prefetch"]) == (mode, True)


async def test_a_cluster_learns_of_images_before_the_first_call(plane: ComputePlane) -> None:
    """6.5 [ext]: of deployments with prefetch, with the account's logins; none of another cluster's."""
    agent, other = await plane.cluster(), await plane.cluster()
    for each in (agent, other):
        assert (await each.heartbeat())[0] == 200
    image = "prefetch.example/echo:1"
    version = await plane.platform.create_version(containerImage=image)
    registered = plane.registered.get(agent.cluster_id)
    assert registered is not None
    wanted = {**SPECIFICATION, "minInstances": 0, "clusters": [registered.name]}
    await plane.platform.deploy(version, **wanted, prefetch=True)
    unwanted = await plane.platform.create_version(containerImage="no.example/x:1")
    await plane.platform.deploy(unwanted, **wanted)

    async def images(asking: Any) -> list[dict[str, Any]]:
        path = f"/v1/nvca/clusters/{asking.cluster_id}/prefetch"
        status, body = await asking.call("GET", path)
        assert status == 200
        return [each for each in body["images"] if each["containerImage"] in (image, "no.example/x:1")]

    await eventually(partial(images, agent), "it is told")
    (found,) = await images(agent)
    assert found["instanceTypeValue"] == "NCP.GPU.H100"
    assert "k8sSecrets" in read(found["credentials"])
    assert await images(other) == []


async def test_only_an_image_has_a_worker_mode_and_is_prefetched(plane: ComputePlane) -> None:
    """What cannot be honoured is refused."""
    process = {"python": "/usr/bin/python3", "file": "/srv/f.py", "workingDirectory": "/srv"}
    wanted = {"name": "f", "process": process, "workerMode": "library"}
    refused = await plane.platform.call("POST", "/v2/nvcf/functions", wanted, expect=400)
    assert refused["detail"].startswith("Invalid request: workerMode")
    version = await plane.platform.create_version(containerImage=None, process=process)
    body = {"deploymentSpecifications": [{**SPECIFICATION, "prefetch": True}]}
    path = f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"
    refused = await plane.platform.call("POST", path, body, expect=400)
    assert "prefetch" in refused["detail"]


async def artifacts(address: str, token: str) -> list[tuple[str, ...]]:
    """Ask for the artifacts in both ways, and return what both say."""
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = nvcf_pb2_grpc.WorkerStub(channel)
        request = nvcf_pb2.ArtifactsRequest()
        streamed: list[tuple[str, ...]] = [
            (
                each.artifactName,
                each.artifactVersion,
                nvcf_pb2.ArtifactKind.Name(each.artifactKind),
                each.path,
                each.url,
            )
            async for each in stub.StreamArtifacts(request, metadata=metadata, timeout=10)
        ]
        answer = await stub.RequestArtifacts(request, metadata=metadata, timeout=10)
    whole = [
        (each.name, each.version, nvcf_pb2.ArtifactKind.Name(each.kind), file.path, file.url)
        for each in answer.artifacts
        for file in each.files
    ]
    assert whole == streamed
    return streamed


async def test_without_the_lost_logins_nothing_is_ordered(plane: ComputePlane) -> None:
    """6.3: an image that cannot be pulled would only fail; the reason is that of the order."""
    body = {
        "registryHostname": "lost.example",
        "secret": {"name": "robot", "value": LOGIN},
        "artifactTypes": ["CONTAINER"],
    }
    await plane.platform.call("POST", "/v2/nvcf/registry-credentials", body)
    agent, version = await plane.cluster(), await plane.version(containerImage=IMAGE)
    reply = await plane.client.request("$JS.API.STREAM.DELETE.KV_nvcf_secrets", b"", timeout=10)
    assert json.loads(reply.data)["success"]

    async def refused() -> bool:
        order = {
            "requestId": new_id(),
            "functionVersionId": version.id,
            "clusterId": agent.cluster_id,
            "gpuSpecificationId": "0-H100-NCP.GPU.H100_1x-1x0",
            "expiresAt": time.time() + 60,
        }
        answer = await plane.client.request("nvcf.icms.order", json.dumps(order).encode(), timeout=20)
        return "the secrets are lost" in json.loads(answer.data).get("error", "")

    await eventually(refused, "the order says why", 30)
