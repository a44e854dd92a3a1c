"""A16: a platform whose supervisor was killed comes back, however many instances start with it."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.support.platform.nvcf_up import local_up
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(180)
INSTANCES = 6


async def test_a16_autoscaler_and_gateway_come_before_instances(tmp_path: Path) -> None:
    async with local_up(tmp_path) as up:
        count = str(INSTANCES)
        function = await up.deploy("f", "def handler(request): return 'ok'\n", "--min", count, "--max", count)
        up.process.send_signal(signal.SIGKILL)
        await up.process.wait()
    (up.data / "state.json").unlink()
    async with local_up(tmp_path) as up:
        began = {
            name: psutil.Process(child["pid"]).create_time() for name, child in up.state["children"].items()
        }
        assert sorted(began, key=lambda name: began[name]) == ["broker", "gateway", "autoscaler", "agent"]
        async with up.session() as session:

            async def answers() -> bool:
                async with session.post(f"/v2/nvcf/pexec/functions/{function}", data=b"x") as response:
                    return response.status == 200

            await eventually(answers, "the function answers")
