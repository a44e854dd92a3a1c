"""The charts on a real node: upgrades of the control plane and of the agent while calls are at work."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from tests.kubernetes.real.functions import MODES
from tests.kubernetes.real.platform import AGENT, AGENT_NAMESPACE, CONTROL_PLANE, NAMESPACE, Answer, Platform
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


def changed(values: dict[str, Any], part: str, name: str) -> dict[str, Any]:
    """Return values that replace the pods of one part."""
    found = copy.deepcopy(values)
    found[part]["podAnnotations"] = {"upgrade": name}
    return found


def secrets_of(platform: Platform) -> dict[str, Any]:
    found = platform.cluster.client.get(f"/api/v1/namespaces/{NAMESPACE}/secrets")["items"]
    return {each["metadata"]["name"]: each["data"] for each in found if each["type"] == "Opaque"}


def uids(platform: Platform, namespace: str, component: str | None = None) -> set[str]:
    found = [pod["metadata"] for pod in platform.pods(namespace)]
    label = "app.kubernetes.io/component"
    return {each["uid"] for each in found if component in (None, each.get("labels", {}).get(label))}


async def test_the_agent_says_that_it_is_healthy(platform: Platform) -> None:
    said = platform.cluster.helm("test", "nvcf-agent", "--namespace", AGENT_NAMESPACE)
    assert "Phase:" in said
    assert "Succeeded" in said


async def test_upgrades_lose_no_call_and_no_secret(platform: Platform) -> None:
    version = await platform.create("upgraded", **MODES["library"])
    await platform.deploy(version, minInstances=1, maxInstances=1)
    assert (await platform.invoke(version, {})).status == 200, platform.story()
    before, pods = secrets_of(platform), uids(platform, "nvcf-backend")
    gateways = uids(platform, NAMESPACE, "gateway")
    answers: list[Answer] = []
    ended = asyncio.Event()

    async def call() -> None:
        while not ended.is_set():
            # Once, without a key: nothing may go wrong that a caller would have to repeat.
            answers.append(await platform.send("POST", f"/v2/nvcf/pexec/{version.path}", {"sleep": 1}))

    async with asyncio.TaskGroup() as callers:
        for _ in range(3):
            callers.create_task(call())
        await asyncio.to_thread(platform.install_control_plane, changed(CONTROL_PLANE, "gateway", "one"))
        await asyncio.to_thread(platform.install_agent, changed(AGENT, "agent", "one"))
        count = len(answers)
        await eventually(lambda: len(answers) > count + 3, "more answers", story=platform.story)
        ended.set()
    assert [answer.status for answer in answers] == [200] * len(answers)
    assert not gateways & uids(platform, NAMESPACE, "gateway")
    assert secrets_of(platform) == before
    assert uids(platform, "nvcf-backend") == pods, "function pods run on while the agent is replaced"
    await platform.undeploy(version)
    await platform.delete(version)
    await platform.until_pods(0)
