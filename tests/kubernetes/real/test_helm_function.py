"""A Helm function of three objects on the real node: the chart of the documentation, from zero to zero."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kubernetes.real.images import name
from tests.kubernetes.real.platform import AGENT, Platform, Version
from tests.support.charts import example_chart
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

CHARTS = "charts"
HOST = f"charts.{CHARTS}.svc.cluster.local:8000"
SERVICES = "/apis/nvca.nvcf.nvidia.io/v1alpha1/miniservices"
CRASHES = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: words}
spec:
  selector: {matchLabels: {app: words}}
  template:
    metadata: {labels: {app: words}}
    spec:
      containers:
        - {name: server, image: {{ .Values.image }}, command: [/there/is/nothing]}
"""


@pytest.fixture(scope="module")
def with_charts(platform: Platform) -> Iterator[Platform]:
    """The platform, whose agent may fetch charts from a pod of the cluster."""
    client = platform.cluster.client
    packed = {"words-0.1.0.tgz": example_chart(), "words-0.2.0.tgz": example_chart(deployment=CRASHES)}
    data = {file: base64.b64encode(chart).decode() for file, chart in packed.items()}
    client.create("/api/v1/namespaces", {"metadata": {"name": CHARTS}})
    base = f"/api/v1/namespaces/{CHARTS}"
    client.create(f"{base}/configmaps", {"metadata": {"name": "charts"}, "binaryData": data})
    container = {
        "name": "server",
        "image": name("plain-function"),
        "command": ["python3", "-m", "http.server", "8000", "--directory", "/charts"],
        "volumeMounts": [{"name": "charts", "mountPath": "/charts"}],
    }
    volumes = [{"name": "charts", "configMap": {"name": "charts"}}]
    metadata = {"name": "charts", "labels": {"app": "charts"}}
    pod = {"metadata": metadata, "spec": {"containers": [container], "volumes": volumes}}
    client.create(f"{base}/pods", pod)
    service = {"selector": {"app": "charts"}, "ports": [{"port": 8000}]}
    client.create(f"{base}/services", {"metadata": {"name": "charts"}, "spec": service})
    platform.install_agent({**AGENT, "helmFunctions": {"privateHosts": [f"http://{HOST}"]}})
    yield platform
    client.delete(f"/api/v1/namespaces/{CHARTS}")


def services(platform: Platform) -> list[dict[str, Any]]:
    """Return the MiniServices."""
    found: list[dict[str, Any]] = platform.cluster.client.get(SERVICES)["items"]
    return found


def story(platform: Platform) -> str:
    """Return what the cluster says of Helm functions."""
    return "\n".join(
        [platform.story(), json.dumps([each.get("status") for each in services(platform)], indent=1)]
    )


async def create(platform: Platform, named: str, chart: str = "0.1.0") -> Version:
    """Create a function of a version of the chart."""
    return await platform.create(
        named,
        helmChart=f"http://{HOST}/words-{chart}.tgz",
        helmChartServiceName="words",
        inferencePort=8000,
        inferenceUrl="/",
    )


async def nothing_left(platform: Platform) -> None:
    """Wait until no MiniService and no namespace of one is left."""

    async def gone() -> bool:
        namespaces = (await asyncio.to_thread(platform.cluster.client.get, "/api/v1/namespaces"))["items"]
        names = [each["metadata"]["name"] for each in namespaces]
        return not services(platform) and not any(each.startswith("sr-") for each in names)

    await eventually(
        gone, "nothing of a Helm function is left", 180, story=lambda: story(platform), interval=0.5
    )


async def test_a_helm_function_serves_from_zero_and_goes(with_charts: Platform) -> None:
    platform = with_charts
    version = await create(platform, "words")
    configuration = {"image": name("plain-function"), "replicas": 2, "ignored": ["of"]}
    await platform.deploy(version, configuration=configuration, maxInstances=1)
    answer = await platform.invoke(version, {"text": "the count of words"})
    assert (answer.status, answer.body) == (200, {"words": 3}), story(platform)

    def running() -> bool:
        return [each["status"]["phase"] for each in services(platform)] == ["Running"]

    # It answers as soon as one of its pods does.
    await eventually(running, "all pods are ready", 120, story=lambda: story(platform), interval=0.2)
    namespace = services(platform)[0]["spec"]["namespace"]
    pods = platform.pods(namespace)
    assert len(pods) == 3
    assert all(each["spec"].get("automountServiceAccountToken") is False for each in pods)
    answers = await asyncio.gather(
        *(platform.invoke(version, {"text": " ".join(["word"] * n)}) for n in range(1, 21))
    )
    assert [each.body for each in answers] == [{"words": n} for n in range(1, 21)]
    # The answer of the chart's server is the caller's, whatever it is.
    assert (await platform.invoke(version, [])).status == 400
    await platform.undeploy(version)
    await platform.delete(version)
    await nothing_left(platform)


async def test_a_chart_whose_pods_fail_is_named_to_its_user(with_charts: Platform) -> None:
    platform = with_charts
    version = await create(platform, "broken", "0.2.0")
    await platform.deploy(
        version, configuration={"image": name("plain-function")}, minInstances=1, maxInstances=1
    )
    text = ""

    async def told() -> bool:
        nonlocal text
        text = await asyncio.to_thread(platform.nvcf, "events", "broken", "--kind", "instance")
        return "/there/is/nothing" in text

    await eventually(told, "the reason is shown", 180, story=lambda: text + story(platform), interval=1.0)
    await platform.undeploy(version)
    await platform.delete(version)
    await nothing_left(platform)
