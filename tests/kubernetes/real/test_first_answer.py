"""From two charts to answers: functions start at zero, serve a burst, are replaced under load, and go."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.kubernetes.real.functions import MODES
from tests.kubernetes.real.platform import FUNCTIONS, NAMESPACE, Answer, Platform, Version
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


def test_control_plane_says_that_it_is_ready(control_plane: Platform) -> None:
    assert "Phase:          Succeeded" in control_plane.cluster.helm("test", "nvcf", "--namespace", NAMESPACE)


@pytest.mark.parametrize("mode", MODES)
async def test_a_function_serves_from_zero_in_bursts_and_goes_back_to_zero(
    platform: Platform, mode: str, record_property: Any
) -> None:
    version = await platform.create(f"burst-{mode}", **MODES[mode])
    await platform.deploy(version)
    began = time.monotonic()
    first = await platform.invoke(version, {"n": 0})
    record_property("seconds to the first answer", round(time.monotonic() - began, 2))
    assert (first.status, first.body["body"], first.body["mode"]) == (200, {"n": 0}, mode), platform.story()
    answers = await asyncio.gather(*(platform.invoke(version, {"n": n, "sleep": 3}) for n in range(32)))
    assert [answer.status for answer in answers] == [200] * 32
    assert [answer.body["body"]["n"] for answer in answers] == list(range(32))
    assert len({answer.body["pod"] for answer in answers}) == 4
    # The last instance is kept for about two minutes.
    await platform.until_pods(0, 300.0)
    await platform.undeploy(version)
    await _end(platform, version)


@pytest.mark.parametrize(("least", "most"), [(1, 1), (2, 4)])
@pytest.mark.parametrize("mode", MODES)
async def test_a_new_version_takes_over_under_load(
    platform: Platform, mode: str, least: int, most: int
) -> None:
    name, count = f"update-{mode}-{most}", {"minInstances": least, "maxInstances": most}
    old = await platform.create(name, **MODES[mode])
    await platform.deploy(old, **count)
    assert (await platform.invoke(old, {})).body["version"] == "1"
    answers: list[Answer] = []
    ended = asyncio.Event()

    def several_answer(version: str) -> bool:
        found = (answer.body for answer in answers if answer.status == 200)
        return len({body["pod"] for body in found if body["version"] == version}) >= least

    async def call() -> None:
        while not ended.is_set():
            answers.append(await platform.invoke(old, {"sleep": 0.2}, any_version=True))

    async with asyncio.TaskGroup() as callers:
        for _ in range(3):
            callers.create_task(call())
        await eventually(lambda: several_answer("1"), "the old instances answer", 60, story=platform.story)
        variables = [{"key": "FUNCTION_VERSION", "value": "2"}]
        new = await platform.create_version(old, name=name, containerEnvironment=variables, **MODES[mode])
        await platform.deploy(new, **count)
        assert (await platform.invoke(new, {})).body["version"] == "2"
        await platform.undeploy(old)
        await platform.until_gone(old)
        before = len(answers)
        await eventually(lambda: len(answers) > before + 10, "ten more answers", story=platform.story)
        await eventually(lambda: several_answer("2"), "the new instances answer", 60, story=platform.story)
        ended.set()
    assert {answer.status for answer in answers} == {200}
    assert {answer.body["version"] for answer in answers[before + 3 :]} == {"2"}
    await platform.delete(old)
    await platform.undeploy(new)
    await _end(platform, new)


async def _end(platform: Platform, version: Version) -> None:
    """Delete a version, and wait until nothing of it is left in the cluster but what the agent remembers."""
    await platform.delete(version)
    await platform.until_pods(0)

    async def nothing_left() -> bool:
        path = f"/api/v1/namespaces/{FUNCTIONS}/secrets"
        secrets = (await asyncio.to_thread(platform.cluster.client.get, path))["items"]
        names = [each["metadata"]["name"] for each in secrets]
        return all(name.startswith("message-") for name in names)

    await eventually(nothing_left, "no secret of an instance is left", story=platform.story)
