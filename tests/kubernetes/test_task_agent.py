"""Tasks on a real API server: the agent is a real process, and killed; what nodes say is written by the test.

Pods run on fake nodes as soon as they are bound; how their containers end is written as a kubelet writes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.agent_site import KubeSite, kube_site
from tests.kubernetes.cluster.kwok import NODES, FakeNodes
from tests.support.platform.agent_site import Ordered
from tests.support.waiting import eventually


@pytest.fixture
async def site(
    tmp_path: Path, kwok_nodes: FakeNodes, fake_crds: None, namespace: str
) -> AsyncIterator[KubeSite]:
    """A control plane without agents, for a cluster with two nodes of 8 H100."""
    kwok_nodes.add(2)
    async with kube_site(tmp_path, kwok_nodes.cluster.kubeconfig, namespace) as made:
        yield made


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def runs(name: str) -> dict[str, Any]:
    return {"name": name, "state": {"running": {"startedAt": now()}}, "ready": True, "started": True}


def ended(name: str, code: int, reason: str = "", message: str = "") -> dict[str, Any]:
    how = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "message": message}
    state = {"terminated": {**how, "startedAt": now(), "finishedAt": now()}}
    return {"name": name, "state": state, "ready": False, "started": False}


async def started(site: KubeSite) -> Ordered:
    ordered = site.task_order()
    await site.send(ordered)
    await site.state(ordered, "running")
    return ordered


async def nothing_left(site: KubeSite) -> None:
    await eventually(lambda: site.left() == [], "nothing is left", story=lambda: str(site.left()))
    await site.free("H100", 16)


async def test_a_task_runs_to_its_end_and_leaves_nothing(site: KubeSite) -> None:
    await site.start_agent()
    ordered = await started(site)
    pod = site.pod(ordered)
    assert pod is not None
    assert pod["spec"]["restartPolicy"] == "Never"
    assert [each["name"] for each in pod["spec"]["containers"]] == ["task", "utils"]
    site.write_containers(ordered, ended("task", 0), runs("utils"))
    seen = await site.terminated(ordered)
    assert (seen.exitCode, seen.category, seen.reason) == (0, None, None)
    assert seen.report["action"] == "RequestSpotInstancesForTask"
    assert site.pod(ordered) is None, "its end is reported once nothing of it runs"
    await nothing_left(site)


@pytest.mark.parametrize(
    ("status", "category", "text"),
    [
        (ended("task", 3, message="ValueError: no data"), "crash", "ended with exit code 3"),
        (ended("task", 137, "OOMKilled"), "out-of-memory", "(OOMKilled)"),
    ],
)
async def test_a_task_that_fails_is_reported_with_its_reason(
    site: KubeSite, status: dict[str, Any], category: str, text: str
) -> None:
    await site.start_agent()
    ordered = await started(site)
    site.write_containers(ordered, status, runs("utils"))
    seen = await site.terminated(ordered)
    assert (seen.category, seen.exitCode) == (category, status["state"]["terminated"]["exitCode"])
    assert text in seen.reason
    assert status["state"]["terminated"]["message"] in seen.reason
    await nothing_left(site)


async def test_an_image_that_cannot_be_pulled_is_named(site: KubeSite) -> None:
    await site.start_agent()
    ordered = await started(site)
    state = {"waiting": {"reason": "InvalidImageName", "message": "couldn't parse image name"}}
    site.write_containers(
        ordered, {"name": "task", "state": state, "ready": False, "imageID": ""}, runs("utils")
    )
    seen = await site.terminated(ordered)
    assert seen.category == "image_pull"
    assert "couldn't parse image name" in seen.reason
    await nothing_left(site)


async def test_a_cancelled_task_leaves_nothing(site: KubeSite) -> None:
    await site.start_agent()
    ordered = await started(site)
    await site.end(ordered)
    seen = await site.terminated(ordered)
    assert seen.report["status"] == "instance-terminated-by-user"
    await nothing_left(site)


async def test_a_task_that_somebody_deletes_is_lost_and_never_started_again(site: KubeSite) -> None:
    await site.start_agent()
    ordered = await started(site)
    site.kube.delete(f"/api/v1/namespaces/{site.namespace}/pods/{ordered.id}?gracePeriodSeconds=0")
    seen = await site.terminated(ordered)
    assert seen.category == "lost"
    await site.send(ordered)
    await site.beats(3)
    assert site.pods() == []
    await nothing_left(site)


async def test_a_task_ends_with_its_node(site: KubeSite) -> None:
    await site.start_agent()
    ordered = await started(site)
    node = (site.pod(ordered) or {})["spec"]["nodeName"]
    site.kube.delete(f"{NODES}/{node}")
    seen = await site.terminated(ordered)
    assert seen.category in ("node_lost", "lost", "evicted")
    await eventually(lambda: site.left() == [], "nothing is left")


@pytest.mark.parametrize("moment", ["ordered", "runs", "ended", "cancelled"])
async def test_a_killed_agent_loses_no_task_and_runs_none_twice(site: KubeSite, moment: str) -> None:
    await site.start_agent()
    ordered = site.task_order()
    await site.send(ordered)
    if moment == "ordered":
        await site.seen_in_cluster("the request is stored", lambda: site.request(ordered))
    else:
        await site.state(ordered, "running")
    first = site.pod(ordered)
    if moment == "cancelled":
        await site.settled("CreateNvcaFunctionTaskStream")
        await site.end(ordered)
    await site.kill_agent()
    if moment == "ended":
        site.write_containers(ordered, ended("task", 0), runs("utils"))
    await site.start_agent()
    if moment in ("cancelled", "ended"):
        seen = await site.terminated(ordered)
        assert moment == "cancelled" or seen.exitCode == 0
    else:
        seen = await site.until(ordered, lambda found: found.state in ("running", "terminated"))
        if seen.state == "running":
            pods = site.pods()
            assert [each["metadata"]["name"] for each in pods] == [ordered.id]
            assert first is None or pods[0]["metadata"]["uid"] == first["metadata"]["uid"]
            site.write_containers(ordered, ended("task", 0), runs("utils"))
            seen = await site.terminated(ordered)
        # One that was not stored yet, or not created yet, may be lost; it has never run then.
        assert seen.exitCode == 0 or (moment == "ordered" and first is None)
    await nothing_left(site)
