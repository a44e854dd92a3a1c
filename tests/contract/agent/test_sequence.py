"""The sequence of calls and messages in an agent's life."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.support.peers.icms import CREATION, TERMINATION, Call
from tests.support.peers.icms_broker import agent_rights
from tests.support.platform.agent_site import CLUSTER, KEY, Site
from tests.support.waiting import eventually


async def test_one_instance_from_order_to_end(site: Site) -> None:
    """protocol.md, section 6.1."""
    await site.start_agent()
    ordered = await site.create(site.version())
    (seen,) = await site.running(ordered)
    assert (seen.report["status"], seen.report["requestState"]) == ("fulfilled", "active")
    assert seen.report["action"] == "RequestSpotInstances"
    await site.settled(CREATION)
    await site.end(ordered)
    over = await site.terminated(ordered)
    assert over.report["status"] == "instance-terminated-by-user"
    assert (over.report["requestState"], over.report["action"]) == ("closed", "TerminateInstances")
    await site.settled(TERMINATION)
    await site.free("CPU", 256)
    states = site.icms.states(ordered.id)
    assert [each for each in states if each != "starting"] == ["running", "shutting-down", "terminated"]


async def test_the_first_call_registers_what_the_cluster_has(site: Site) -> None:
    """protocol.md, section 6.5."""
    await site.start_agent("--gpu", "H100=2", "--attribute", "disk=fast")
    call = site.icms.calls[0]
    assert (call.kind, call.method) == ("register", "PUT")
    assert call.path == f"/v1/nvca/clusters/{CLUSTER}/register"
    body = call.body
    assert (body["status"], body["allowClusterTargeting"]) == ("READY", True)
    assert body["allowTaskClusterCreationQueues"] is True
    assert body["heartbeatSeconds"] == 0.5
    assert (body["backend"], body["attributes"]) == ("process", {"disk": "fast"})
    gpus = {each["name"]: each for each in body["gpus"]}
    assert set(gpus) == {"CPU", "H100"}
    types = {each["name"]: each for each in gpus["H100"]["instanceTypes"]}
    assert types["NCP.GPU.H100_2x"]["value"] == "NCP.GPU.H100"
    assert (types["NCP.GPU.H100_2x"]["gpuCount"], types["NCP.GPU.H100_1x"]["maxInstances"]) == (2, 2)


async def test_then_come_heartbeat_and_reconciliation(site: Site) -> None:
    """protocol.md, section 6.5."""
    await site.start_agent()
    await eventually(lambda: site.icms.of_kind("instances"))
    await eventually(lambda: site.icms.of_kind("heartbeat"))
    beat = site.icms.of_kind("heartbeat")[0]
    assert beat.body["status"] == "healthy"
    assert beat.body["gpuUsage"] == {"CPU": {"capacity": 256, "allocated": 0, "available": 256}}
    assert beat.body["maintenanceMode"] == "None"
    assert site.icms.of_kind("instances")[0].path == f"/v1/si/clusters/{CLUSTER}/instances"


async def test_every_call_says_who_calls_and_only_the_acknowledgement_has_the_trace(site: Site) -> None:
    """protocol.md, section 6.5; protocol.md, section 6.3."""
    await site.start_agent()
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    await site.running(await site.create(site.version(), traceParent=trace, messageBatchId="batch-1"))
    for call in site.icms.calls:
        assert call.headers["Authorization"] == f"Bearer {KEY}-{CLUSTER}"
        assert call.headers["X-Nv-Cluster-Id"] == CLUSTER
        assert call.headers["User-Agent"].startswith("nvcf-agent/")
        assert call.headers["Accept"] == "application/json"
        assert call.headers.get("traceparent") == (trace if call.kind == "acknowledge" else None)
    (acknowledgement,) = site.icms.of_kind("acknowledge")
    assert acknowledgement.method == "PUT"
    assert acknowledgement.body == {
        "instanceCount": 1,
        "messageBatchId": "batch-1",
        "status": "pending-fulfillment",
    }


async def test_the_acknowledgement_comes_before_every_report(site: Site) -> None:
    """protocol.md, section 6.1."""
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)
    kinds = [call.kind for call in site.icms.calls if ordered.request_id in call.path]
    assert kinds[0] == "acknowledge"
    assert set(kinds[1:]) == {"report"}


async def test_the_broker_is_used_with_the_contracts_rights_alone(site: Site) -> None:
    """protocol.md, section 6.2."""
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)
    await site.end(ordered)
    await site.terminated(ordered)
    assert site.icms.broker.violations() == set()
    assert len(agent_rights(CLUSTER)) == 8


async def test_the_login_at_the_broker_names_the_cluster_and_carries_the_identity(site: Site) -> None:
    """protocol.md, section 6.2."""
    await site.start_agent()
    assert site.callout.accepted == [(CLUSTER, f"{KEY}-{CLUSTER}")]
    assert site.callout.refused == []


async def test_the_consumers_are_those_of_the_contract(site: Site) -> None:
    """protocol.md, section 6.2."""
    await site.start_agent()
    for stream, filters, wait in (
        (CREATION, f"Create.NVCA.*.{CLUSTER}.*.*", 360),
        (TERMINATION, f"Terminate.NVCA.{CLUSTER}", 30),
    ):
        config = (await site.icms.consumer(stream, CLUSTER))["config"]
        assert config["durable_name"] == f"{stream}-{CLUSTER}"
        # A list of one filter is shown as a single one by some servers.
        assert config.get("filter_subjects", [config.get("filter_subject")]) == [filters]
        assert config["description"] == f"Consumer for {filters} NVCA cluster {CLUSTER}"
        assert (config["ack_policy"], config["deliver_policy"]) == ("explicit", "all")
        assert (config["ack_wait"], config["max_deliver"]) == (wait * 10**9, -1)


async def test_consumers_that_the_control_plane_made_are_used(site: Site) -> None:
    """protocol.md, section 6.2."""
    for stream in (CREATION, TERMINATION):
        await site.icms.create_consumer(stream, CLUSTER)
    await site.start_agent()
    ordered = await site.create(site.version())
    await site.running(ordered)
    await site.end(ordered)
    await site.terminated(ordered)


async def test_a_message_that_waits_for_the_agent_is_taken_at_its_start(site: Site) -> None:
    """protocol.md, section 6.2: deliver policy all."""
    ordered = await site.create(site.version())
    await site.start_agent()
    await site.running(ordered)


async def test_every_word_of_the_action_is_taken_and_the_first_one_is_answered(site: Site) -> None:
    """protocol.md, section 6.3."""
    await site.start_agent()
    words = ("RequestSpotInstances", "RequestInstances", "RequestICMSInstances")
    orders = [await site.create(site.version(), action=word) for word in words]
    for seen in await site.running(*orders):
        assert seen.report["action"] == "RequestSpotInstances"


async def test_a_request_id_that_begins_with_sr_is_not_prefixed_again(site: Site) -> None:
    """protocol.md, section 6.3."""
    await site.start_agent()
    await site.create(site.version(), requestId="sr-abc")
    await eventually(lambda: site.icms.last("0-sr-abc").get("instanceState") == "running")


async def test_a_gpu_with_a_dot_in_its_name_is_a_bar_in_the_subject(site: Site) -> None:
    """protocol.md, section 6.2."""
    await site.start_agent("--gpu", "RTX4.5=1")
    value = "NCP.GPU.RTX4.5"
    ordered = await site.create(
        site.version(), gpu="RTX4.5", type_name=f"{value}_1x", type_value=value, gpus=1
    )
    await site.running(ordered)


async def test_queues_in_the_credentials_are_not_used(site: Site) -> None:
    """protocol.md, section 6.5: they are for clouds."""
    queue = {"url": "https://sqs.example.com/q", "queueType": "SQS", "accessKeyId": "x"}
    answer = {"clusterId": CLUSTER, "clusterGroupId": "g", "credentials": {"creationQueue": {"H100": queue}}}
    decide = site.icms._decide

    def with_queues(call: Call) -> tuple[int, dict[str, Any]]:
        return (200, answer) if call.kind == "register" else decide(call)

    site.icms._decide = with_queues  # type: ignore[method-assign]
    await site.start_agent()
    await site.running(await site.create(site.version()))
    assert not site.icms.of_kind("credentials")


async def test_what_nvidias_control_plane_sends_beside_is_ignored(site: Site) -> None:
    """protocol.md, section 6.3: members that a side does not know are ignored."""
    await site.start_agent()
    models = base64.b64encode(json.dumps({"models": []}).encode()).decode()
    ordered = await site.create(
        site.version(),
        launch={"spotEnvironment": "prod", "models": models, "cacheHandle": "h", "nobodyKnows": {"a": [1]}},
        sub="user",
        traceState="x=y",
        gpuType="CPU",
        nobodyKnows=1,
    )
    await site.running(ordered)
