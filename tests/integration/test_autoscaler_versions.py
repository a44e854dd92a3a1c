"""Several versions at once: two of one function, and many that need more GPUs than there are."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.support.platform.compute_plane import Answer, Plane, load, running_plane
from tests.support.platform.gateways import Version

FROM_ZERO = {"minInstances": 0, "maxInstances": 2}
SOON = {"scaleToZeroDelay": 1.0}


def shares(plane: Plane, answers: list[Answer], *versions: Version) -> list[int]:
    """Count the responses from instances of each version. No other instance may have responded."""
    owner = {each.id: each.version_id for each in plane.instances.values()}
    counts = Counter(owner[answer.body["instance"]] for answer in answers)
    assert counts.keys() <= {version.id for version in versions}
    return [counts[version.id] for version in versions]


@pytest.mark.slow
async def test_requests_without_a_version_go_where_instances_are(tmp_path: Path) -> None:
    async with running_plane(tmp_path, flags=("--lost-after", "6"), gateway=("--ack-wait", "5")) as plane:
        await plane.start_agent("one", "--gpu", "SIM=1")
        await plane.start_agent("two")
        old = await plane.deploy({"clusters": ["one"], "gpu": "SIM"})
        new = await plane.deploy({"clusters": ["two"]}, beside=old)
        await plane.until(lambda: bool(plane.running(old) and plane.running(new)), "both serve")
        async with load(plane, old, any_version=True) as both:
            await plane.until(lambda: len(both.answers) >= 100, "spread over both")
        first, second = shares(plane, both.answers, old, new)
        # A fair random choice is outside of these bounds once in ten million times.
        assert min(first, second) > 0.2 * (first + second)
        assert both.statuses().keys() == {200}

        # One loses all its instances: from then on the other takes everything. What had been queued for the
        # one before that waits for it, and is answered when it is back.
        async with load(plane, old, any_version=True) as through:
            await plane.until(lambda: len(through.answers) >= 20, "load")
            await plane.kill_cluster("two")
            await plane.until(lambda: not plane.running(new), "one version has no instance")
            answers = await asyncio.gather(
                *(plane.ask(old, number, any_version=True) for number in range(50))
            )
            assert shares(plane, answers, old, new) == [50, 0]
            await plane.start_agent("two")
            await plane.until(lambda: bool(plane.running(new)), "it comes back")
        assert through.statuses().keys() == {200}

        async with load(plane, old, any_version=True) as again:
            await plane.until(lambda: len(again.answers) >= 60, "spread over both")
        assert all(shares(plane, again.answers, old, new))


async def test_with_both_versions_at_zero_demand_starts_the_chosen_version(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent()
        old = await plane.deploy(FROM_ZERO, scaling=SOON)
        new = await plane.deploy(FROM_ZERO, scaling=SOON, beside=old)
        answers = await asyncio.gather(*(plane.ask(old, number, any_version=True) for number in range(40)))
        assert Counter(answer.status for answer in answers) == {200: 40}
        assert sorted(answer.body["id"] for answer in answers) == list(range(40))
        assert all(shares(plane, answers, old, new)), "of forty, each gets some"
        await plane.until(lambda: not plane.live(old) and not plane.live(new), "back to zero")
        # One request starts one version, not both.
        before = len(plane.creations)
        answer = await plane.ask(old, any_version=True)
        assert answer.status == 200
        assert len({each.message.function_version_id for each in plane.creations[before:]}) == 1


@pytest.mark.slow
async def test_a_version_without_an_instance_gets_one_of_those_who_have_many(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("one", "--gpu", "SIM=2")
        await plane.start_agent("two", "--gpu", "SIM=2")
        much = {"gpu": "SIM", "minInstances": 0, "maxInstances": 50}
        greedy = await plane.deploy(much, scaling=SOON, SECONDS="0.2")
        small = await plane.deploy(much, scaling=SOON)
        async with load(plane, greedy, callers=60) as pressing:
            await plane.until(lambda: len(plane.running(greedy)) == 4, "all GPUs are taken")
            assert not plane.of(small)
            answers = await asyncio.gather(*(plane.ask(small, number) for number in range(3)))
            assert [answer.status for answer in answers] == [200] * 3
            await plane.until(lambda: not plane.live(small), "the small one is back at zero")
            await plane.until(lambda: len(plane.running(greedy)) == 4, "the first one has everything again")
        assert pressing.statuses().keys() == {200}
        assert any("other versions wait" in (each.reason or "") for each in plane.of(greedy))


# Longer than the time-outs of its waits.
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_three_versions_share_one_gpu_in_time_slices(tmp_path: Path) -> None:
    async with running_plane(tmp_path, flags=("--turn", "3"), gateway=("--ack-wait", "5")) as plane:
        await plane.start_agent("one", "--gpu", "SIM=1")
        want = {"gpu": "SIM", "minInstances": 0, "maxInstances": 4}
        versions = [await plane.deploy(want, scaling=SOON, SECONDS="0.05") for _ in range(3)]
        async with (
            load(plane, versions[0]) as first,
            load(plane, versions[1]) as second,
            load(plane, versions[2]) as third,
        ):
            loads = (first, second, third)
            await plane.until(lambda: all(len(each.answers) > 10 for each in loads), "a time slice each", 240)
            counts = [len(each.answers) for each in loads]
            await plane.until(
                lambda: all(len(one.answers) > then + 10 for one, then in zip(loads, counts, strict=True)),
                "another time slice each", 240,
            )  # fmt: skip
        for each in loads:
            assert each.statuses().keys() == {200}


@pytest.mark.timeout(300)
@pytest.mark.slow
async def test_a_deployment_that_holds_all_gpus_changes_in_place_without_a_gap(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("one", "--gpu", "SIM=2")
        await plane.start_agent("two", "--gpu", "SIM=2")
        specification = {"gpu": "SIM", "minInstances": 4, "maxInstances": 4}
        version = await plane.deploy(specification, SECONDS="0.05")
        await plane.until(lambda: len(plane.running(version)) == 4, "all GPUs are taken")
        old = {each.id for each in plane.live(version)}
        fewest = 4
        async with load(plane, version, callers=8) as running:
            await plane.until(lambda: len(running.answers) > 20, "load")
            await plane.redeploy(version, {**specification, "maxRequestConcurrency": 2})

            def replaced() -> bool:
                nonlocal fewest
                fewest = min(fewest, len(plane.running(version)))
                return len(plane.running(version)) == 4 and not old & {one.id for one in plane.live(version)}

            await plane.until(replaced, "all four are replaced", 120)
        assert running.statuses().keys() == {200}
        # Only one instance at a time is replaced, so most instances serve all the time.
        assert fewest >= 2


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_at_zero_to_n_with_all_gpus_held_by_itself_a_change_goes_through(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("one", "--gpu", "SIM=2")
        specification = {"gpu": "SIM", "minInstances": 0, "maxInstances": 2}
        version = await plane.deploy(specification, scaling=SOON, SECONDS="0.1")
        async with load(plane, version, callers=12) as running:
            await plane.until(lambda: len(plane.running(version)) == 2, "all GPUs are taken")
            old = {each.id for each in plane.live(version)}
            await plane.redeploy(version, {**specification, "maxRequestConcurrency": 3}, scaling=SOON)
            await plane.until(
                lambda: bool(plane.running(version)) and not old & {one.id for one in plane.live(version)},
                "replaced", 120,
            )  # fmt: skip
        assert running.statuses().keys() == {200}
