"""Parts of the platform are killed while calls are at work: every call is answered, and causes are named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.kubernetes.real.functions import MODES
from tests.kubernetes.real.platform import AGENT_NAMESPACE, FUNCTIONS, NAMESPACE, Answer, Platform, Version
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow
CALLS = 12


@pytest.fixture(params=MODES)
async def running(platform: Platform, request: pytest.FixtureRequest) -> AsyncIterator[Version]:
    """A version with one instance that has answered."""
    version = await platform.create(f"fault-{request.param}", **MODES[request.param])
    await platform.deploy(version, minInstances=1, maxInstances=2)
    assert (await platform.invoke(version, {})).status == 200, platform.story()
    yield version
    await platform.until_ready()
    await platform.undeploy(version)
    await platform.delete(version)
    await platform.until_pods(0, 180.0)


async def at_work(platform: Platform, version: Version) -> list[asyncio.Task[Answer]]:
    """Start calls, and return when the first one has been answered."""
    calls = [asyncio.create_task(platform.invoke(version, {"n": n, "sleep": 1})) for n in range(CALLS)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    return calls


async def all_answered(calls: list[asyncio.Task[Answer]]) -> None:
    """Wait for the calls, and check their answers."""
    answers = await asyncio.gather(*calls)
    assert [(answer.status, answer.body["body"]["n"]) for answer in answers] == [
        (200, n) for n in range(CALLS)
    ]


async def test_a_killed_agent_comes_back_to_the_pods_it_had(platform: Platform, running: Version) -> None:
    before = {pod["metadata"]["uid"] for pod in platform.pods()}
    calls = await at_work(platform, running)
    platform.kill(AGENT_NAMESPACE, platform.pod_of(AGENT_NAMESPACE, name="nvcf-agent"), "agent")
    await all_answered(calls)
    assert before <= {pod["metadata"]["uid"] for pod in platform.pods()}


async def test_a_killed_gateway_loses_no_call(platform: Platform, running: Version) -> None:
    calls = await at_work(platform, running)
    platform.kill(NAMESPACE, platform.pod_of(NAMESPACE, component="gateway"), "gateway")
    await all_answered(calls)


async def test_a_killed_broker_loses_no_call(platform: Platform, running: Version) -> None:
    calls = await at_work(platform, running)
    platform.kill(NAMESPACE, platform.pod_of(NAMESPACE, component="nats"), "nats")
    await all_answered(calls)


async def test_a_killed_function_container_loses_no_call(platform: Platform, running: Version) -> None:
    calls = await at_work(platform, running)
    platform.kill(FUNCTIONS, await platform.ready_function_pod(), "inference")
    await all_answered(calls)
    assert (await platform.invoke(running, {})).status == 200


async def test_an_evicted_pod_drains_and_is_replaced(platform: Platform, running: Version) -> None:
    calls = await at_work(platform, running)
    name = await platform.ready_function_pod()
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    platform.cluster.client.create(f"/api/v1/namespaces/{FUNCTIONS}/pods/{name}/eviction", body)
    await all_answered(calls)
    assert (await platform.invoke(running, {})).body["pod"] != name


@pytest.fixture
def little_memory(platform: Platform) -> Iterator[None]:
    """Containers of functions get a memory limit, which the node's instance type does not give them."""
    limits = [{"type": "Container", "default": {"memory": "512Mi"}, "defaultRequest": {"memory": "64Mi"}}]
    path = f"/api/v1/namespaces/{FUNCTIONS}/limitranges"
    platform.cluster.client.create(path, {"metadata": {"name": "little"}, "spec": {"limits": limits}})
    yield
    platform.cluster.client.delete(f"{path}/little")


@pytest.mark.usefixtures("little_memory")
async def test_a_function_that_needs_too_much_memory_is_named(platform: Platform) -> None:
    version = await platform.create("oom", **MODES["sidecar"])
    await platform.deploy(version, minInstances=1, maxInstances=1)
    assert (await platform.invoke(version, {})).status == 200
    # The sidecar gives the request back each time, so it is answered late: after five deliveries, between
    # which the kubelet waits 10, 20, 40 and 80 s.
    call = asyncio.create_task(platform.invoke(version, {"allocate": 4 << 30}, seconds=600.0))
    await eventually(
        lambda: "memory" in platform.nvcf("events", "oom"),
        "the cause is named",
        story=platform.story,
        interval=1.0,
    )
    answer = await call
    assert (answer.status, "urn:inference-connection" in str(answer.body)) == (502, True), answer
    await platform.undeploy(version)
    await platform.delete(version)
    await platform.until_pods(0, 180.0)


async def test_a_server_that_ignores_sigterm_does_not_keep_its_pod(platform: Platform) -> None:
    ignoring = [{"key": "IGNORE_SIGTERM", "value": "1"}]
    version = await platform.create("deaf", containerEnvironment=ignoring, **MODES["sidecar"])
    await platform.deploy(version, minInstances=1, maxInstances=1)
    assert (await platform.invoke(version, {})).status == 200, platform.story()
    await platform.undeploy(version)
    await platform.delete(version)
    await platform.until_pods(0, 90.0)


async def test_an_instance_without_a_place_waits_and_says_so(platform: Platform) -> None:
    path = f"/api/v1/nodes/{platform.node.name}"
    platform.cluster.client.patch(path, {"spec": {"unschedulable": True}})
    try:
        version = await platform.create("no-place", **MODES["library"])
        await platform.deploy(version)
        call = asyncio.create_task(platform.invoke(version, {"n": 1}))
        await eventually(
            lambda: "no place" in platform.nvcf("events", "no-place"),
            "it is said",
            story=platform.story,
            interval=1.0,
        )
    finally:
        platform.cluster.client.patch(path, {"spec": {"unschedulable": None}})
    assert (await call).status == 200
    await platform.undeploy(version)
    await platform.delete(version)
    await platform.until_pods(0)
