"""A11: on the platform, a stuck or unhealthy instance is replaced, and its events say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvcf_proto.models import InstanceState
from tests.support.platform.compute_plane import Plane, deployment_path, running_plane
from tests.support.platform.gateways import Version

STUCK = """
import os, pathlib, time
from nvcf_worker import SyncRequest
def handler(request: SyncRequest):
    body = request.json()
    first = pathlib.Path(os.environ["SHARED_CONFIG_DIR"], "once")
    if not first.exists():
        first.touch()
        time.sleep(1000)
    return {"id": body["id"], "instance": os.environ["INSTANCE_ID"]}
"""

UNHEALTHY = """
import os, pathlib
class handler:
    def __call__(self, request):
        return {"id": 0}
    def health(self):
        first = pathlib.Path(os.environ["SHARED_CONFIG_DIR"], "once")
        if not first.exists():
            first.touch()
            return "the GPU answers no more"
"""


async def limited(plane: Plane, version: Version, seconds: int) -> None:
    body = {"deploymentSpecifications": [{}], "maxExecutionSeconds": seconds}
    answer = await plane.platform.call("PUT", deployment_path(version), body)
    assert answer["deployment"]["maxExecutionSeconds"] == seconds


async def test_an_instance_whose_slots_do_not_come_back(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        version = await plane.deploy(source=STUCK)
        await limited(plane, version, 1)
        await plane.start_agent()
        await plane.until(lambda: len(plane.running(version)) == 1, "running")
        answer = await plane.ask(version, 1)
        assert answer.status == 504
        assert "the deployment (maxExecutionSeconds)" in answer.body["detail"]
        # The only slot is lost: the process is replaced, and the next call waits for the new one.
        assert (await plane.ask(version, 2)).status == 200
        await plane.until(
            lambda: any("1 of 1 slots are lost" in text for text in plane.words()), "an event says why"
        )
        assert not any("failed to start" in text for text in plane.words())


async def test_an_instance_whose_health_hook_complains(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        version = await plane.deploy(source=UNHEALTHY)
        await plane.start_agent()
        await plane.until(
            lambda: any("the GPU answers no more" in text for text in plane.words()), "an event says why"
        )
        await plane.until(
            lambda: any(
                each.state is InstanceState.RUNNING and each.restarts == 1 for each in plane.of(version)
            ),
            "replaced",
        )
        assert (await plane.ask(version)).status == 200
        assert not any("failed to start" in text for text in plane.words())


async def test_limits_are_checked(tmp_path: Path) -> None:
    async with running_plane(tmp_path, autoscalers=0) as plane:
        version = await plane.deploy()
        path, wrong = deployment_path(version), ("0", 0, -1, 86_401, 1.5)
        for value in wrong:
            body: dict[str, Any] = {"deploymentSpecifications": [{}], "maxExecutionSeconds": value}
            answer = await plane.platform.call("PUT", path, body, expect=400)
            assert "maxExecutionSeconds" in answer["detail"]
        answer = await plane.platform.call("GET", path)
        assert answer["deployment"]["maxExecutionSeconds"] == 3600
