"""A gateway that is being replaced: new calls go elsewhere, and those that it holds get their answers."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from nvcf_gateway.config import parse_arguments
from tests.support.platform.gateways import messages_in, running_platform
from tests.support.waiting import eventually

FUNCTION = """
import asyncio, os
from nvcf_worker import serve

async def handler(request):
    for _ in range(2000):
        if os.path.exists(os.environ["RELEASE"]):
            # More than goes over the broker: the worker brings it to the gateway itself.
            return b"x" * 1_000_000
        await asyncio.sleep(0.02)

serve(handler, concurrency=4)
"""


async def test_calls_end_well_while_the_gateway_drains(tmp_path: Path) -> None:
    file, release = tmp_path / "function.py", tmp_path / "release"
    file.write_text(FUNCTION)
    flags = ("--drain", "0.5", "--grace", "60")
    async with running_platform(tmp_path, flags=flags) as platform:
        version = await platform.deployed_version()
        await platform.start_worker(version, file, concurrency=4, environment={"RELEASE": str(release)})
        gateway, headers = platform.gateway, platform.authorization()

        async def call() -> tuple[int, int, str]:
            async with platform.session.post(gateway.url + version.pexec, headers=headers) as response:
                return response.status, len(await response.read()), response.headers.get("Connection", "")

        early = asyncio.create_task(call())
        client = await platform.broker_client()

        async def queued() -> bool:
            return await messages_in(client, f"rq_local_{version.id}") == 1

        await eventually(queued, "the call is under way")
        gateway.child.kill(signal.SIGTERM)

        async def stopping() -> bool:
            async with platform.session.get(gateway.url + "/health/ready") as response:
                return response.status == 503 and (await response.json())["status"] == "stopping"

        await eventually(stopping, "the gateway says that it is stopping")
        async with platform.session.get(gateway.url + "/health/live") as response:
            assert response.status == 200
            assert response.headers["Connection"] == "close"
        late = asyncio.create_task(call())
        # Longer than --drain: from here on it only serves for those that wait.
        await asyncio.wait({early, late}, timeout=1)
        assert not early.done()
        release.touch()
        assert (await early)[:2] == (200, 1_000_000)
        assert await late == (200, 1_000_000, "close")
        assert await gateway.child.wait() == 0
        await client.close()


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with running_platform(tmp_path, flags=("--drain", "600")) as platform:
        gateway = platform.gateway
        gateway.child.kill(signal.SIGTERM)

        async def ready() -> int:
            async with platform.session.get(gateway.url + "/health/ready") as response:
                return response.status

        async def stopping() -> bool:
            return await ready() == 503

        await eventually(stopping, "draining")
        gateway.child.kill(signal.SIGTERM)
        assert await gateway.child.wait() == 0


def test_a_wrong_time_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--signing-key", "key.pem", "--drain", "soon"])
    assert "0 to 86400 seconds" in capsys.readouterr().err
