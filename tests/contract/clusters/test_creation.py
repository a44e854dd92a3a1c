"""Creation messages as an agent reads them (docs/reference/protocol.md, section 6.3)."""

from __future__ import annotations

import base64
import json

import grpc
import pytest
import pytest_asyncio

from nvcf_proto.icms.messages import decode_environment
from nvcf_proto.ids import new_id
from tests.support.peers.icms_agent import CREATION, AgentPeer, Creation
from tests.support.peers.worker import connect_once
from tests.support.platform.gateways import ACCOUNT, Version
from tests.support.platform.icms import ComputePlane

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

IMAGE = "registry.example/echo:1"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def ordered(plane: ComputePlane) -> tuple[AgentPeer, Version, Creation]:
    """A cluster, a version, and the message of its first instance."""
    agent = await plane.cluster("lab", clusterGroupName="onprem", region="local", cloudProvider="NCP")
    assert (await agent.register())[0] == 200
    version = await plane.version(
        name="echo", containerImage=IMAGE, tags=["one", "two"], inferenceUrl="/predict"
    )
    await plane.order(version, agent.cluster_id)
    return agent, version, await agent.creation()


async def test_the_action_is_the_legacy_word(ordered: tuple[AgentPeer, Version, Creation]) -> None:
    """6.3: RequestSpotInstances, which every agent reads."""
    assert ordered[2].body["action"] == "RequestSpotInstances"


async def test_one_instance_a_message(ordered: tuple[AgentPeer, Version, Creation]) -> None:
    """6.3: NVIDIA's agent forgets the second one."""
    assert ordered[2].body["instanceCount"] == 1


async def test_it_names_account_function_and_version(
    ordered: tuple[AgentPeer, Version, Creation],
) -> None:
    """6.3: ncaId, functionDetails, and the same ids on the upper level."""
    _, version, created = ordered
    assert created.body["ncaId"] == ACCOUNT
    assert created.body["accountName"] == ACCOUNT
    assert created.body["functionDetails"] == {
        "functionId": version.function_id,
        "functionVersionId": version.id,
        "functionType": "DEFAULT",
    }
    assert created.body["functionId"] == version.function_id
    assert created.body["functionVersionId"] == version.id


async def test_the_instance_type_decides(ordered: tuple[AgentPeer, Version, Creation]) -> None:
    """6.3: instanceTypeName, its value as the cluster registered it, and how many GPUs."""
    body = ordered[2].body
    assert body["instanceTypeName"] == "NCP.GPU.H100_1x"
    assert body["instanceTypeValue"] == "NCP.GPU.H100"
    assert body["requestedGPUCount"] == 1


async def test_the_launch_specification(ordered: tuple[AgentPeer, Version, Creation]) -> None:
    """6.3: what is started, on which GPU, and where."""
    launch = ordered[2].launch
    assert (launch["gpuName"], launch["containerImage"]) == ("H100", IMAGE)
    assert launch["cloudProvider"] == "NCP"
    assert launch["clusters"] == ["lab"]
    assert launch["regions"] == ["local"]
    assert launch["deploymentId"] == ordered[2].body["deploymentId"]
    assert launch["gpuSpecificationId"] == ordered[2].body["gpuSpecificationId"]
    assert "process" not in launch
    assert ordered[2].body["clusterGroup"] == "onprem"


async def test_the_environment(ordered: tuple[AgentPeer, Version, Creation]) -> None:
    """6.3: lines NAME=VALUE with everything a worker needs to start."""
    _, version, created = ordered
    found = created.environment
    assert found["FUNCTION_ID"] == version.function_id
    assert found["FUNCTION_VERSION_ID"] == version.id
    assert found["FUNCTION_NAME"] == "echo"
    assert found["FUNCTION_TAGS"] == "one,two"
    assert found["NCA_ID"] == ACCOUNT
    assert found["MAX_REQUEST_CONCURRENCY"] == "1"
    assert found["INFERENCE_CONTAINER"] == IMAGE
    assert found["INFERENCE_URL"] == "/predict"


async def test_the_addresses_are_those_of_the_gateway_and_the_broker(
    plane: ComputePlane, ordered: tuple[AgentPeer, Version, Creation]
) -> None:
    """6.3: without --worker-grpc and --worker-nats they are the gateway's own."""
    found = ordered[2].environment
    assert found["NVCF_FQDN_GRPC"] == plane.platform.gateway.grpc
    assert found["NVCF_FQDN_NATS"] == plane.platform.broker.url
    assert found["NVCF_FQDN"] == plane.platform.gateway.url


async def test_the_trace_goes_on(ordered: tuple[AgentPeer, Version, Creation]) -> None:
    """6.3: traceParent, which NVIDIA's agent copies into its acknowledgement."""
    assert ordered[2].body["traceParent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")


async def test_the_worker_token_connects_the_instance(
    plane: ComputePlane, ordered: tuple[AgentPeer, Version, Creation]
) -> None:
    """6.3: NVCF_WORKER_TOKEN, good for the id that the agent gives to the instance."""
    _, version, created = ordered
    token = created.environment["NVCF_WORKER_TOKEN"]
    grpc = plane.platform.gateway.grpc
    answer = await connect_once(grpc, token, created.instance_id, version.function_id, version.id)
    again = await connect_once(
        grpc, answer.nvcfWorkerToken, created.instance_id, version.function_id, version.id
    )
    assert again.nvcfWorkerToken


@pytest.mark.parametrize("form", ["sr-{}-miniservice", "0-sr-{}-task", "3-sr-{}"])
async def test_the_first_token_covers_the_forms_of_ids(
    plane: ComputePlane, ordered: tuple[AgentPeer, Version, Creation], form: str
) -> None:
    """6.3: instance ids come from the agent; the answer is for the id that was named."""
    _, version, created = ordered
    token, instance = created.environment["NVCF_WORKER_TOKEN"], form.format(created.request_id)
    address = plane.platform.gateway.grpc
    answer = await connect_once(address, token, instance, version.function_id, version.id)
    with pytest.raises(grpc.RpcError):
        await connect_once(
            address, answer.nvcfWorkerToken, created.instance_id, version.function_id, version.id
        )


@pytest.mark.parametrize("instance", ["0-sr-{other}", "worker", "x-sr-{own}", "0-sr-{own}-x", "0-sr-{own}\n"])
async def test_the_first_token_covers_no_other_instance(
    plane: ComputePlane, ordered: tuple[AgentPeer, Version, Creation], instance: str
) -> None:
    """6.3: an instance of another request is another instance."""
    _, version, created = ordered
    token = created.environment["NVCF_WORKER_TOKEN"]
    named = instance.format(other=new_id(), own=created.request_id)
    with pytest.raises(grpc.RpcError):
        await connect_once(plane.platform.gateway.grpc, token, named, version.function_id, version.id)


async def test_a_repeated_order_is_published_again(plane: ComputePlane) -> None:
    """6.2: message ids name the attempt; the same attempt twice is one message."""
    agent, version = await plane.cluster(), await plane.version()
    request = await plane.order(version, agent.cluster_id)
    await plane.order(version, agent.cluster_id, request_id=request, write=False)
    await plane.order(version, agent.cluster_id, request_id=request, attempt=1, write=False)
    found = await agent.fetch(CREATION, seconds=0.5)
    assert [json.loads(each.data)["requestId"] for each in found] == [request, request]
    assert [(each.headers or {})["Nats-Msg-Id"] for each in found] == [
        f"create-{request}-0",
        f"create-{request}-1",
    ]


async def test_an_order_for_nothing_that_exists_is_refused(plane: ComputePlane) -> None:
    """6.8: the answer names the reason, and nothing is published."""
    agent, version = await plane.cluster(), await plane.version()
    idle = await plane.platform.create_version()
    await plane.order(version, new_id(), write=False, expect="no cluster")
    await plane.order(idle, agent.cluster_id, write=False, expect="not deployed")
    await plane.order(version, agent.cluster_id, specification="9-x", write=False, expect="specification")
    request = await plane.order(version, agent.cluster_id)
    await agent.creation()
    assert (await agent.acknowledge(request))[0] == 200
    assert (await agent.ended(request, f"0-sr-{request}", "failed"))[0] == 200
    await plane.order(version, agent.cluster_id, request_id=request, attempt=1, write=False, expect="closed")
    assert await agent.fetch(CREATION, seconds=0.3) == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"requestId": 1}', b'{"requestId": "a.b"}'])
async def test_an_order_that_cannot_be_read_is_answered(plane: ComputePlane, body: bytes) -> None:
    """6.8: an error, not silence."""
    reply = await plane.client.request("nvcf.icms.order", body, timeout=10)
    assert json.loads(reply.data)["error"]


async def test_telemetry_endpoints_travel_without_their_secrets(plane: ComputePlane) -> None:
    """6.3: telemetries is base64 of JSON by kind."""
    agent = await plane.cluster()
    endpoint = await plane.platform.call(
        "POST",
        "/v2/nvcf/telemetries",
        {
            "name": "grafana",
            "endpoint": "https://otlp.example",
            "protocol": "HTTP",
            "provider": "GRAFANA_CLOUD",
            "types": ["LOGS", "TRACES"],
            "secret": {"name": "grafana"},
        },
    )
    telemetry = endpoint["telemetry"]["telemetryId"]
    version = await plane.version(telemetries={"logsTelemetryId": telemetry})
    await plane.order(version, agent.cluster_id)
    created = await agent.creation()
    sent = json.loads(base64.b64decode(created.launch["telemetries"]))["telemetries"]
    assert list(sent) == ["logsTelemetry"]
    assert sent["logsTelemetry"]["endpoint"] == "https://otlp.example"
    assert sent["logsTelemetry"]["provider"] == "GRAFANA_CLOUD"


@pytest.mark.parametrize("mark", ["\n", "\r\n", "\r", "\0", "\x0b", "\x1e", "\x85", "\u2028", "\u2029"])
async def test_line_breaks_do_not_add_variables(plane: ComputePlane, mark: str) -> None:
    """6.3: one line a variable, whatever a user has written, for every reader of lines."""
    agent = await plane.cluster()
    version = await plane.version(containerArgs=f"a{mark}NVCF_WORKER_TOKEN=forged")
    await plane.order(version, agent.cluster_id)
    created = await agent.creation()
    assert created.environment["NVCF_WORKER_TOKEN"].count(".") == 2
    assert created.environment["INFERENCE_CONTAINER_ARGS"] == "a NVCF_WORKER_TOKEN=forged"
    ours = decode_environment(created.launch["environment"])
    assert ours == created.environment
