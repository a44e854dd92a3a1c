"""The agent on a real API server: pods of fake nodes, a real broker and an independent control plane."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nvcf_broker.process import free_port
from nvcf_otel.byoo import account_folder
from tests.kubernetes.agent_site import REQUESTS, KubeSite, kube_site
from tests.kubernetes.cluster.client import ApiProblem
from tests.kubernetes.cluster.gpus import L40
from tests.kubernetes.cluster.kwok import NODES, FakeNodes, Shape
from tests.kubernetes.frozen_relay import FrozenRelay
from tests.support.peers.icms import Call
from tests.support.platform.agent_site import CLUSTER
from tests.support.waiting import eventually
from tests.unit.agent.kubernetes.pods import decoded, packed


@pytest.fixture
async def site(
    tmp_path: Path, kwok_nodes: FakeNodes, fake_crds: None, namespace: str
) -> AsyncIterator[KubeSite]:
    """A control plane without agents, for a cluster with two nodes of 8 H100."""
    kwok_nodes.add(2)
    async with kube_site(tmp_path, kwok_nodes.cluster.kubeconfig, namespace) as made:
        yield made


@pytest.fixture
def fake_frozen(fake_cluster: FakeNodes, tmp_path: Path) -> Iterator[FrozenRelay]:
    """A relay to the API server that can go away."""
    relay = FrozenRelay(fake_cluster.cluster, tmp_path)
    yield relay
    relay.close()


async def test_from_the_message_to_the_pod_and_back(site: KubeSite) -> None:
    await site.start_agent()
    (gpu,) = site.icms.of_kind("register")[-1].body["gpus"]
    assert (gpu["name"], gpu["capacity"]) == ("H100", 16)
    ordered = await site.gpu_instance(8)
    await site.state(ordered, "running")
    assert site.icms.states(ordered.id) in (["starting", "running"], ["running"])
    pod = site.pod(ordered)
    request = site.request(ordered)
    assert pod is not None
    assert request is not None
    assert request["metadata"]["finalizers"] == ["nvca.finalizers.nvidia.io"]
    assert pod["metadata"]["ownerReferences"][0]["uid"] == request["metadata"]["uid"]
    assert site.seen(ordered).node == pod["spec"]["nodeName"]
    await site.free("H100", 8)
    await site.settled("CreateNvcaFunctionTaskStream")
    await site.end(ordered)
    seen = await site.terminated(ordered)
    assert (seen.report["status"], seen.cause) == ("instance-terminated-by-user", None)
    assert site.pod(ordered) is None
    await site.free("H100", 16)


async def test_a_pod_has_the_certificates_of_its_accounts_telemetry(site: KubeSite) -> None:
    """The agent's own files are in no pod, so exporters would find none there."""
    folder = site.data / "telemetry-secrets" / account_folder("account")
    folder.mkdir(parents=True)
    for name in ("own-clientCert", "own-clientKey"):
        (folder / name).write_text(f"{name} in PEM form")
    endpoint = {
        "protocol": "GRPC", "provider": "OTEL_COLLECTOR", "endpoint": "https://own.example",
        "name": "own",
        "secret": {"name": "own"}, "configuration": {"auth": "MTLS"},
    }  # fmt: skip
    telemetries = packed({"telemetries": {"tracesTelemetry": endpoint}})
    await site.start_agent()
    ordered = await site.gpu_instance(8, function=site.function(telemetries=telemetries))
    await site.state(ordered, "running")

    def secret(what: str) -> dict[str, str]:
        path = f"/api/v1/namespaces/{site.namespace}/secrets/{ordered.id}-{what}"
        return decoded(site.kube.get(path))

    variables = secret("worker")
    for name, variable in (("own-clientCert", "CLIENT_CERTIFICATE"), ("own-clientKey", "CLIENT_KEY")):
        assert variables[f"OTEL_EXPORTER_OTLP_TRACES_{variable}"] == f"/var/secrets/{name}"
        assert secret("secrets")[name] == f"{name} in PEM form"


async def test_a_message_without_a_number_of_gpus_gets_those_of_its_type(site: KubeSite) -> None:
    await site.start_agent()
    ordered = site.gpu_order(2)
    del ordered.message["requestedGPUCount"]
    await site.send(ordered)
    await site.state(ordered, "running")
    pod = site.pod(ordered)
    assert pod is not None
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert "affinity" in pod["spec"]
    await site.free("H100", 14)


async def test_an_order_waits_until_one_node_has_room_for_it(site: KubeSite) -> None:
    await site.start_agent()
    small = [await site.gpu_instance(4) for _ in range(3)]
    await site.running(*small)
    large = await site.gpu_instance(8)
    await eventually(lambda: "no node has 8 H100 free" in site.log(), "the order is put off")
    assert site.pod(large) is None
    assert site.request(large) is None
    assert site.usage("H100") == {"capacity": 16, "allocated": 12, "available": 4}
    nodes = [(site.pod(each) or {})["spec"]["nodeName"] for each in small]
    alone = next(each for each, node in zip(small, nodes, strict=True) if nodes.count(node) == 1)
    await site.end(alone)
    await site.state(large, "running")


async def test_duplicated_reordered_and_late_messages(site: KubeSite) -> None:
    await site.start_agent()
    twice = site.gpu_order()
    for _ in range(3):
        await site.send(twice)
    ended_first = site.gpu_order()
    site.icms.requests[ended_first.request_id] = {"message": ended_first.message}
    await site.end(ended_first)
    await site.terminated(ended_first)
    await site.send(ended_first)
    late = site.gpu_order(expiresAt=1.0)
    await site.send(late)
    await site.state(twice, "running")
    await site.settled("CreateNvcaFunctionTaskStream")
    assert [each["metadata"]["name"] for each in site.pods()] == [twice.id]
    assert [site.request(each) for each in (ended_first, late)] == [None, None]
    for _ in range(2):
        await site.end(twice)
    await site.terminated(twice)
    await site.send(twice)
    await site.settled("CreateNvcaFunctionTaskStream")
    assert site.pods() == []


async def test_one_of_two_agents_works_and_the_other_takes_its_place(site: KubeSite) -> None:
    first = await site.start_agent()
    port = free_port()
    second = await site.launch("--health", f"127.0.0.1:{port}")
    await says(port, "standby")
    ordered = await site.gpu_instance()
    await site.state(ordered, "running")
    pod = site.pod(ordered)
    first.kill()
    await first.wait()
    await site.ready(second)
    await says(port, "working")
    another = await site.gpu_instance()
    await site.state(another, "running")
    assert site.pod(ordered) == pod


async def test_an_agent_that_starts_anew_touches_no_pod(site: KubeSite) -> None:
    agent = await site.start_agent()
    orders = [await site.gpu_instance() for _ in range(3)]
    await site.running(*orders)
    pods = [site.pod(each) for each in orders]
    agent.terminate()
    assert await agent.wait() == 0
    lost = orders.pop()
    site.kube.delete(f"/api/v1/namespaces/{site.namespace}/pods/{lost.id}")
    await site.seen_in_cluster("the pod is gone", lambda: site.pod(lost) is None)
    await site.start_agent()
    seen = await site.terminated(lost)
    assert (seen.report["status"], seen.cause, seen.category) == (
        "instance-terminated-by-service",
        "instance-not-found",
        "lost",
    )
    assert [site.pod(each) for each in orders] == pods[:2]
    await site.free("H100", 14)


@pytest.mark.slow
async def test_an_agent_killed_at_each_step(site: KubeSite) -> None:
    """Before the acknowledgement, before the pod, after the pod, while it ends, before the last report."""
    site.icms.judge = lambda call: 503 if call.kind == "acknowledge" else None
    await site.start_agent()
    ordered = await site.gpu_instance()
    await site.seen_in_cluster("the request is stored", lambda: (site.request(ordered) or {}).get("status"))
    await site.kill_agent()
    quota = f"/api/v1/namespaces/{site.namespace}/resourcequotas"
    site.kube.create(quota, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
    await eventually(lambda: not may_make_pods(site), "the quota counts")
    site.icms.judge = lambda _: None
    await site.start_agent()
    await eventually(lambda: "exceeded quota" in site.log(), "the pod is refused", story=site.log)
    await site.kill_agent()
    site.kube.delete(f"{quota}/none")
    await site.start_agent()
    await site.seen_in_cluster("the pod is made", lambda: site.pod(ordered))
    await site.kill_agent()
    await site.start_agent()
    await site.state(ordered, "running")
    assert len(site.pods()) == 1
    held = {"metadata": {"finalizers": ["example.com/held"]}}
    path = f"/api/v1/namespaces/{site.namespace}/pods/{ordered.id}"
    site.kube.patch(path, held)
    await site.end(ordered)
    await site.state(ordered, "shutting-down")
    await site.kill_agent()
    site.icms.judge = lambda call: 503 if call.body.get("instanceState") == "terminated" else None
    await site.start_agent()
    site.kube.patch(path, {"metadata": {"finalizers": None}})
    await site.seen_in_cluster("the pod is gone", lambda: site.pod(ordered) is None)
    await eventually(
        lambda: any(call.body.get("instanceState") == "terminated" for call in site.icms.of_kind("report")),
        "the end is told",
    )
    await site.kill_agent()
    site.icms.judge = lambda _: None
    await site.start_agent()
    seen = await site.terminated(ordered)
    assert seen.report["status"] == "instance-terminated-by-user"
    await site.free("H100", 16)


async def test_an_api_server_that_is_away_ends_nothing(site: KubeSite, fake_frozen: FrozenRelay) -> None:
    port = free_port()
    agent = await site.start_agent(
        "--kubeconfig", str(fake_frozen.kubeconfig), "--health", f"127.0.0.1:{port}"
    )
    ordered = await site.gpu_instance()
    await site.state(ordered, "running")
    pod = site.pod(ordered)
    fake_frozen.end()
    await eventually(lambda: beats(site)[-1].body["status"] == "unhealthy", "the agent says so")
    assert (await answered(port, "/livez"))[0] == 200
    assert await answered(port, "/readyz") == (503, "stalled")
    waiting, count = await site.gpu_instance(), len(beats(site))
    await eventually(lambda: len(beats(site)) > count + 4, "heartbeats go on")
    assert agent.returncode is None
    assert site.seen(ordered).state == "running"
    fake_frozen.start()
    await site.state(waiting, "running")
    await eventually(lambda: beats(site)[-1].body["status"] == "healthy", "the agent is well again")
    assert site.pod(ordered) == pod
    assert site.icms.states(ordered.id)[-1] == "running"


async def test_a_deleted_request_ends_its_instance(site: KubeSite) -> None:
    await site.start_agent()
    ordered = await site.gpu_instance()
    await site.state(ordered, "running")
    site.kube.delete(f"{REQUESTS.format(site.namespace)}/sr-{ordered.request_id}")
    seen = await site.terminated(ordered)
    assert (seen.report["status"], seen.cause) == (
        "instance-terminated-by-service",
        "instance-terminated-service-maintenance",
    )
    await site.seen_in_cluster("the object is gone", lambda: site.request(ordered) is None)
    assert site.pods() == []


async def test_nodes_come_and_go(site: KubeSite, kwok_nodes: FakeNodes) -> None:
    await site.start_agent()
    labels = {node["metadata"]["name"]: node["metadata"]["labels"] for node in site.kube.get(NODES)["items"]}
    assert {each.get("nvca.nvcf.nvidia.io/instance-type") for each in labels.values()} == {"NCP.GPU.H100"}
    first, second = labels
    site.kube.patch(f"{NODES}/{first}", {"spec": {"unschedulable": True}})
    await eventually(lambda: registered(site) == {"H100": 8}, "the cordoned node is not registered")
    kinds = site.icms.of_kind("register")[-1].body["gpus"][0]["instanceTypes"]
    assert [(each["maxInstances"], each["unschedulableCapacity"]) for each in kinds][:1] == [(8, 8)]
    site.kube.patch(f"{NODES}/{second}", {"spec": {"unschedulable": True}})
    await eventually(lambda: registered(site) == {}, "nothing is registered")
    waiting = await site.gpu_instance()
    await eventually(lambda: "is ready now" in site.log(), "the order waits")
    kwok_nodes.add(1, Shape(gpus=2))
    await site.state(waiting, "running")
    assert registered(site) == {"H100": 2}
    kwok_nodes.add(1, Shape(L40, gpus=4))
    await eventually(lambda: registered(site) == {"H100": 2, "L40": 4}, "another kind is registered")


async def test_the_nvcfbackend_says_what_to_do_and_shows_what_is(site: KubeSite) -> None:
    kind = f"/apis/nvcf.nvidia.io/v1/namespaces/{site.namespace}/nvcfbackends"
    text = (
        '[{"name": "A100", "capacity": 2, "instanceTypes": [{"name": "X_1x", "value": "X", "gpuCount": 1}]}]'
    )
    spec = {
        "clusterConfig": {"clusterName": "here", "gpuDiscovery": {"static": {"gpuConfig": text}}},
        "overrides": {"featureGate": {"values": ["-MultiNodeWorkloads"]}},
    }
    body = {"apiVersion": "nvcf.nvidia.io/v1", "kind": "NVCFBackend", "metadata": {"name": "b"}, "spec": spec}
    site.kube.create(kind, body)
    agent = await site.start_agent("--cpu-slots", "1")
    assert registered(site) == {"A100": 2, "CPU": 1}

    def status() -> Any:
        return (site.kube.get(f"{kind}/b").get("status") or {}).get("gpuUsage")

    whole = {"A100": {"capacity": 2, "allocated": 0, "available": 2}}
    await site.seen_in_cluster("the status", lambda: (status() or {}).get("A100") == whole["A100"])
    cpu = site.order(site.function())
    await site.send(cpu)
    await site.state(cpu, "running")
    await site.seen_in_cluster("the slot is taken", lambda: status()["CPU"]["available"] == 0)
    found = site.kube.get(f"{kind}/b")["status"]
    assert (found["agentStatus"], found["kubernetesVersion"][:2]) == ("Healthy", "v1")
    assert agent.returncode is None


async def test_the_key_set_of_the_cluster_is_sent(site: KubeSite, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("projected-token")
    site.icms.add_cluster(CLUSTER, "projected-token")
    await site.start_agent("--token-file", str(token))
    await eventually(lambda: site.icms.of_kind("jwks"), "the key set", story=site.log)
    assert json.loads(site.icms.of_kind("jwks")[0].body["jwks"])["keys"][0]["kty"] in ("RSA", "EC")


def may_make_pods(site: KubeSite) -> bool:
    """Return whether the API server would take a pod."""
    body = {"metadata": {"name": "any"}, "spec": {"containers": [{"name": "any", "image": "any"}]}}
    try:
        site.kube.create(f"/api/v1/namespaces/{site.namespace}/pods?dryRun=All", body)
    except ApiProblem:
        return False
    return True


def registered(site: KubeSite) -> dict[str, int]:
    return {each["name"]: each["capacity"] for each in site.icms.of_kind("register")[-1].body["gpus"]}


def beats(site: KubeSite) -> list[Call]:
    return site.icms.of_kind("heartbeat")


async def answered(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, (await answer.json())["state"]


async def says(port: int, state: str) -> None:
    """Wait until an agent is ready, in this state."""

    async def there() -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            return await answered(port, "/readyz") == (200, state)
        return False

    await eventually(there, f"the agent says {state}")
