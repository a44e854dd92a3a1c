"""Clocks that are set: nothing is given up, nothing stands still, and calls go on."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from nvcf_autoscaler.controller import loop as controller
from nvcf_autoscaler.controller.clock import STEP_SECONDS, WallClock
from nvcf_autoscaler.controller.version_state import VersionState
from nvcf_gateway.ratelimit.counters import Counters
from nvcf_gateway.ratelimit.policy import Limit
from nvcf_worker.control import registration
from tests.support.platform.nvcf_up import local_up
from tests.support.waiting import eventually

HOUR = 3600.0
CLOCKS = Path(__file__).parents[1] / "support" / "clock"
FUNCTION = "import os\ndef handler(request): return str(os.getpid())\n"


class Wall:
    """The module `time` with a wall clock that can be set."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.offset = 0.0

    def time(self) -> float:
        return time.time() + self.offset


def test_only_a_step_counts() -> None:
    clock = WallClock(1000.0, 10.0)
    assert clock.step(1001.0, 11.0) == 0.0
    assert clock.step(1002.0 + STEP_SECONDS / 2, 12.0) == 0.0, "NTP corrects it slowly"
    assert clock.step(1003.0 + STEP_SECONDS, 13.0) == 0.0
    assert clock.step(4604.0 + STEP_SECONDS, 14.0) == pytest.approx(HOUR)
    assert clock.step(1005.0 + STEP_SECONDS, 15.0) == pytest.approx(-HOUR)
    assert clock.step(1006.0 + STEP_SECONDS, 16.0) == 0.0


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_versions_are_reconciled_after_a_step(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall()
    seen: list[float] = []
    heard: list[float] = []

    class Reconciler:
        async def reconcile(self, version_id: str, state: VersionState) -> float:
            seen.append(state.known_since)
            return wall.time() + 600.0

    monkeypatch.setattr(controller, "time", wall)
    monkeypatch.setattr(controller, "MAX_RECONCILE_INTERVAL", 600.0)
    control = controller.ControlLoop(Reconciler(), lambda: {"v"}, lambda: True, clock_set=heard.append)
    running = asyncio.create_task(control.run())
    try:
        await eventually(lambda: len(seen) == 1, "the version is reconciled")
        wall.offset = step
        await eventually(lambda: len(seen) == 2, "it is reconciled again")
        assert abs(heard[0] - wall.time()) < 60, "silence of clusters counts from now on"
        assert seen[1] == heard[0], "what was measured by the other clock is forgotten"
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.parametrize("step", [HOUR, -HOUR, -5.0])
def test_a_limit_that_was_reached_before_a_step_has_room_again(step: float) -> None:
    limits, counters = [Limit("name", "k", 3, 1)], Counters()
    assert counters.acquire(limits, 3, 10_000.0).granted == 3
    assert counters.acquire(limits, 3, 10_000.1).granted == 0
    refused = counters.acquire(limits, 3, 10_000.1 + step)
    assert refused.granted == 3


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_a_worker_token_is_renewed_in_time(step: float, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = Wall()
    monkeypatch.setattr(registration, "time", wall)
    monkeypatch.setattr(registration, "LOOK_AT_CLOCK_SECONDS", 0.01)
    short = asyncio.create_task(registration._sleep(0.3))
    long = asyncio.create_task(registration._sleep(600.0))
    await asyncio.sleep(0)
    wall.offset = step
    async with asyncio.timeout(30):
        await short
        if step > 0:
            await long
    assert long.done() is (step > 0)
    long.cancel()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("who", "ahead"),
    [
        ("nvcf_autoscaler", HOUR),
        ("nvcf_autoscaler", -HOUR),
        ("nvcf_gateway", HOUR),
        ("nvcf_gateway", -HOUR / 2),  # what it gives an agent is good for an hour
        ("nvcf_agent", HOUR),
    ],
)
async def test_a_platform_runs_with_clocks_that_differ(who: str, ahead: float, tmp_path: Path) -> None:
    clocks = tmp_path / "clocks"
    clocks.mkdir()
    (clocks / who).write_text(str(ahead))
    variables = {"PYTHONPATH": str(CLOCKS), "NVCF_TEST_CLOCKS": str(clocks)}
    async with local_up(tmp_path, **variables) as up:
        function = await up.deploy("f", FUNCTION)
        path = f"/v2/nvcf/pexec/functions/{function}"
        async with up.session() as session:

            async def call(key: str) -> tuple[int, str]:
                async with session.post(path, data=b"x", headers={"Idempotency-Key": key}) as response:
                    return response.status, await response.text()

            first = await call("first")
            assert first[0] == 200
            until = time.monotonic() + 40  # longer than an instance may be silent
            while time.monotonic() < until:
                assert await call(str(until - time.monotonic())) == first, "the same process answers"
                await asyncio.sleep(0.2)
        listed = json.loads(await up.ok("instances", "--json"))
        assert [each["state"] for each in listed] == ["RUNNING"], "no other was ordered or given up"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("step", [HOUR, -HOUR])
@pytest.mark.parametrize("who", [("nvcf_autoscaler",), ("nvcf_gateway", "nvcf_agent", "nvcf_autoscaler")])
async def test_a_platform_goes_on_after_a_step(who: tuple[str, ...], step: float, tmp_path: Path) -> None:
    clocks = tmp_path / "clocks"
    clocks.mkdir()
    variables = {"PYTHONPATH": str(CLOCKS), "NVCF_TEST_CLOCKS": str(clocks)}
    async with local_up(tmp_path, **variables) as up:
        function = await up.deploy("f", FUNCTION)
        path = f"/v2/nvcf/pexec/functions/{function}"
        async with up.session() as session:

            async def call() -> tuple[int, str]:
                async with session.post(path, data=b"x") as response:
                    return response.status, await response.text()

            first = await call()
            assert first[0] == 200
            for each in who:
                (clocks / each).write_text(str(step))
            log = up.data / "autoscaler.log"
            await eventually(lambda: "the clock was set by" in log.read_text(), "the autoscaler sees it")
            until = time.monotonic() + 20
            while time.monotonic() < until:
                assert await call() == first, "the same process answers"
                await asyncio.sleep(0.2)
        # Nothing new is deployed: the clocks of broker and workers, which check tokens, are not moved here.
        listed = json.loads(await up.ok("instances", "--json"))
        assert {each["state"] for each in listed} == {"RUNNING"}, "no instance was given up"
