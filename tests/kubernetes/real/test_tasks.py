"""Tasks in pods that really run: they complete, fail, are cancelled, and nothing of them stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.kubernetes.real.platform import AGENT_NAMESPACE, FUNCTIONS, Platform
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow
REPORT = """
import datetime, json, os, signal, sys, time
def report(percent, name):
    path = os.environ["NVCT_PROGRESS_FILE_PATH"]
    at = datetime.datetime.now(datetime.timezone.utc).isoformat()
    members = {"percentComplete": percent, "name": name, "lastUpdatedAt": at, "metadata": {"n": percent}}
    with open(path + ".new", "w") as file:
        json.dump(members, file)
    os.replace(path + ".new", path)
"""
OBJECTS = "app.kubernetes.io/component=function-instance"


@pytest.fixture(autouse=True)
async def nothing_stays(platform: Platform) -> AsyncIterator[None]:
    yield
    await platform.until_ready()
    await platform.until_pods(0)
    client = platform.cluster.client

    async def gone() -> bool:
        return not [
            each
            for kind in ("secrets", "configmaps")
            for each in client.get(f"/api/v1/namespaces/{FUNCTIONS}/{kind}?labelSelector={OBJECTS}")["items"]
        ]

    await eventually(gone, "Secrets and ConfigMaps are gone", 60.0, interval=0.3)


async def results(platform: Platform, task_id: str) -> list[tuple[str, Any]]:
    listed = (await platform.call("GET", f"/v1/nvct/tasks/{task_id}/results"))["results"]
    return [(each["name"], each["metadata"]) for each in reversed(listed)]


async def test_a_task_completes_with_all_its_results(platform: Platform) -> None:
    script = f"{REPORT}\nfor n in (10, 50, 100):\n    report(n, f'part-{{n}}')\n    time.sleep(3)"
    task_id = await platform.task(script)
    task = await platform.task_is(task_id, "COMPLETED", "ERRORED", "CANCELED")
    assert (task["status"], task.get("percentComplete")) == ("COMPLETED", 100), task
    assert await results(platform, task_id) == [(f"part-{n}", {"n": n}) for n in (10, 50, 100)]


async def test_a_task_that_ends_at_once_loses_no_result(platform: Platform) -> None:
    task_id = await platform.task(f"{REPORT}\nreport(100, 'only')")
    task = await platform.task_is(task_id, "COMPLETED", "ERRORED", "CANCELED")
    assert task["status"] == "COMPLETED", task
    assert await results(platform, task_id) == [("only", {"n": 100})]


async def test_a_task_that_fails_says_why(platform: Platform) -> None:
    task_id = await platform.task("raise SystemExit('there is no data')")
    task = await platform.task_is(task_id, "COMPLETED", "ERRORED", "CANCELED")
    assert task["status"] == "ERRORED"
    assert "exit code 1" in task["healthInfo"]["error"]
    assert "there is no data" in task["healthInfo"]["error"]


async def test_an_image_that_is_not_there_is_named(platform: Platform) -> None:
    task_id = await platform.task("pass", containerImage="registry.local/missing:1")
    task = await platform.task_is(task_id, "COMPLETED", "ERRORED", "CANCELED")
    assert task["status"] == "ERRORED"
    assert "cannot pull the image registry.local/missing:1" in task["healthInfo"]["error"]


@pytest.fixture
def little_memory(platform: Platform) -> Iterator[None]:
    """Containers get a memory limit, which the node's instance type does not give them."""
    limits = [{"type": "Container", "default": {"memory": "256Mi"}, "defaultRequest": {"memory": "64Mi"}}]
    path = f"/api/v1/namespaces/{FUNCTIONS}/limitranges"
    platform.cluster.client.create(path, {"metadata": {"name": "little"}, "spec": {"limits": limits}})
    yield
    platform.cluster.client.delete(f"{path}/little")


@pytest.mark.usefixtures("little_memory")
async def test_a_task_that_needs_too_much_memory_is_named(platform: Platform) -> None:
    task_id = await platform.task("x = bytearray(2 << 30)\nprint(len(x))")
    task = await platform.task_is(task_id, "COMPLETED", "ERRORED", "CANCELED")
    assert task["status"] == "ERRORED"
    assert "OOMKilled" in task["healthInfo"]["error"]


async def test_a_cancelled_task_gets_sigterm_and_its_grace_period(platform: Platform) -> None:
    script = f"{REPORT}\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), sys.exit(7)))"
    task_id = await platform.task(f"{script}\nreport(1, 'ready')\ntime.sleep(600)")
    await platform.task_is(task_id, "RUNNING")

    async def handles() -> bool:
        return bool(await results(platform, task_id))

    await eventually(handles, "the task handles the signal", 120.0, story=platform.story, interval=0.3)
    (pod,) = platform.pods()
    path = f"/api/v1/namespaces/{FUNCTIONS}/pods/{pod['metadata']['name']}"
    client = platform.cluster.client
    client.patch(path, {"metadata": {"finalizers": ["test.example/stay"]}})
    await platform.call("POST", f"/v1/nvct/tasks/{task_id}/cancel")
    codes: list[int] = []

    async def ended() -> bool:
        statuses = (await asyncio.to_thread(client.get, path))["status"]["containerStatuses"]
        (task,) = (each["state"] for each in statuses if each["name"] == "task")
        codes.extend([task["terminated"]["exitCode"]] if "terminated" in task else [])
        return bool(codes)

    await eventually(ended, "the task has ended", 120.0, story=platform.story, interval=0.3)
    client.patch(path, {"metadata": {"finalizers": None}})
    assert codes[0] == 7
    assert (await platform.task_is(task_id, "CANCELED"))["status"] == "CANCELED"


async def test_the_maximum_run_time_ends_a_task(platform: Platform) -> None:
    limits = {"maxRuntimeDuration": "PT5S", "terminationGracePeriodDuration": "PT2S"}
    task_id = await platform.task("import time; time.sleep(600)", **limits)
    await platform.task_is(task_id, "EXCEEDED_MAX_RUNTIME_DURATION")


async def test_a_killed_agent_loses_no_task(platform: Platform) -> None:
    script = f"{REPORT}\nfor n in range(1, 21):\n    report(5 * n, f'part-{{n}}')\n    time.sleep(1)"
    task_id = await platform.task(script)
    await platform.task_is(task_id, "RUNNING")
    before = [pod["metadata"]["uid"] for pod in platform.pods()]
    platform.kill(AGENT_NAMESPACE, platform.pod_of(AGENT_NAMESPACE, name="nvcf-agent"), "agent")
    task = await platform.task_is(task_id, "COMPLETED", "ERRORED", "CANCELED")
    assert task["status"] == "COMPLETED", task
    assert task["launches"] == len(before) == 1
    assert [each for each, _ in await results(platform, task_id)][-1] == "part-20"
