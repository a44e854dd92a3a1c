"""Instances follow demand: real broker, gateway, autoscalers, agents and workers."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from nvcf_proto.icms.messages import instance_id_of
from nvcf_proto.models import InstanceState
from tests.support.platform.compute_plane import Plane, load, running_plane

FROM_ZERO = {"minInstances": 0, "maxInstances": 4}
SOON = {"scaleToZeroDelay": 1.0}


def leader(plane: Plane) -> int:
    """Return the number of the replica that leads by its log, or -1."""
    found = [
        index
        for index, child in enumerate(plane.autoscalers)
        if child.running and child.text().count("this replica leads") > child.text().count("does not lead")
    ]
    return found[-1] if found else -1


async def test_a_function_scales_from_zero_for_its_first_request_and_back_to_zero(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent()
        version = await plane.deploy(FROM_ZERO, scaling=SOON)
        assert not plane.of(version)
        answer = await plane.ask(version, 7)
        assert (answer.status, answer.body["id"], answer.polls) == (200, 7, 0)
        assert len(plane.ordered()) == 1
        await plane.until(lambda: not plane.live(version), "back to zero")
        assert {each.state for each in plane.of(version)} == {InstanceState.COMPLETED}
        # Repeat it, now that the start-up time is known.
        assert (await plane.ask(version, 8)).status == 200
        assert any("1 instance:" in text for text in plane.words())
        assert any("0 instances:" in text for text in plane.words())


async def test_a_cold_start_longer_than_the_poll_time_loses_nothing(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent()
        version = await plane.deploy(FROM_ZERO, scaling=SOON, START="4")
        answers = await asyncio.gather(*(plane.ask(version, number, poll_seconds=1) for number in range(5)))
        assert [answer.status for answer in answers] == [200] * 5
        assert all(answer.polls for answer in answers)
        assert sorted(answer.body["id"] for answer in answers) == list(range(5))


@pytest.mark.slow
async def test_a_burst_at_zero_starts_as_many_instances_as_are_allowed(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("one", "--gpu", "SIM=2")
        await plane.start_agent("two", "--gpu", "SIM=2")
        version = await plane.deploy({**FROM_ZERO, "gpu": "SIM"}, scaling=SOON, SECONDS="0.05")
        answers = await asyncio.gather(*(plane.ask(version, number) for number in range(500)))
        assert Counter(answer.status for answer in answers) == {200: 500}
        assert sorted(answer.body["id"] for answer in answers) == list(range(500))
        assert len({answer.body["instance"] for answer in answers}) == 4
        assert Counter(plane.ordered().values()) == {"one": 2, "two": 2}
        await plane.until(lambda: not plane.live(version), "back to zero")


async def test_the_next_replica_leads_within_5_seconds_of_a_kill_under_load(tmp_path: Path) -> None:
    async with running_plane(tmp_path, autoscalers=2) as plane:
        await plane.start_agent()
        version = await plane.deploy({"minInstances": 2, "maxInstances": 4})
        await plane.until(lambda: len(plane.running(version)) >= 2, "two instances")
        async with load(plane, version) as running:
            await plane.until(lambda: len(running.answers) > 20, "load")
            first = leader(plane)
            before = {each.id for each in plane.live(version)}
            plane.autoscalers[first].kill(signal.SIGKILL)
            killed = time.monotonic()
            await plane.until(lambda: leader(plane) not in (-1, first), "another leads", 10)
            assert time.monotonic() - killed < 5
            # The new leader acts, and it has neither doubled nor ended the instances.
            other = await plane.deploy(FROM_ZERO)
            assert (await plane.ask(other)).status == 200
        assert running.statuses().keys() == {200}
        assert before <= {each.id for each in plane.running(version)}
        assert len(plane.live(version)) <= 4


async def test_a_leader_that_stops_gracefully_is_replaced_at_once(tmp_path: Path) -> None:
    async with running_plane(tmp_path, autoscalers=2) as plane:
        await plane.until(lambda: leader(plane) >= 0, "a leader")
        first = leader(plane)
        plane.autoscalers[first].kill(signal.SIGTERM)
        assert await plane.autoscalers[first].wait() == 0
        await plane.until(lambda: leader(plane) not in (-1, first), "another leads", 5)


async def test_instances_of_a_killed_cluster_are_replaced_on_the_other(tmp_path: Path) -> None:
    async with running_plane(tmp_path, flags=("--lost-after", "6"), gateway=("--ack-wait", "5")) as plane:
        await plane.start_agent("one")
        await plane.start_agent("two")
        version = await plane.deploy({"minInstances": 2, "maxInstances": 2}, SECONDS="0.05")
        await plane.until(lambda: len(plane.running(version)) == 2, "two instances")
        assert plane.places(plane.live(version)) == {"one", "two"}
        async with load(plane, version) as running:
            await plane.until(lambda: len(running.answers) > 20, "load")
            await plane.kill_cluster("one")
            await plane.until(
                lambda: [plane.place(each) for each in plane.running(version)] == ["two", "two"], "replaced"
            )
        assert running.statuses().keys() == {200}
        # No creation was sent to the cluster meanwhile.
        (lost,) = [each for each in plane.of(version) if plane.place(each) == "one"]
        assert lost.state is InstanceState.FAILED
        assert "lost: nothing was heard of cluster one" in str(lost.reason)


async def test_a_deployment_changes_in_place_under_load(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("local", "--gpu", "SIM=4")
        one = {"minInstances": 1, "maxInstances": 2}
        version = await plane.deploy(one, SECONDS="0.05")
        await plane.until(lambda: len(plane.running(version)) == 1, "one instance")
        old = {each.id for each in plane.live(version)}
        async with load(plane, version) as running:
            await plane.until(lambda: len(running.answers) > 20, "load")
            # With another request concurrency the instances are replaced.
            await plane.redeploy(version, {**one, "maxRequestConcurrency": 4})
            await plane.until(
                lambda: bool(plane.running(version)) and not old & {each.id for each in plane.live(version)},
                "replaced by instances with more slots",
            )
            # With another kind of GPU too.
            await plane.redeploy(version, {**one, "maxRequestConcurrency": 4, "gpu": "SIM"})
            await plane.until(
                lambda: {each.gpu for each in plane.live(version)} == {"SIM"},
                "replaced by instances with GPUs",
            )
        assert running.statuses().keys() == {200}
        # Only the bounds change: no instance has to end.
        kept = {each.id for each in plane.running(version)}
        await plane.redeploy(
            version, {"minInstances": 3, "maxInstances": 3, "maxRequestConcurrency": 4, "gpu": "SIM"}
        )
        await plane.until(lambda: len(plane.running(version)) == 3, "three")
        assert kept <= {each.id for each in plane.running(version)}


async def test_a_changed_deployment_replaces_its_instances_where_there_is_no_room_for_both(
    tmp_path: Path,
) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("local", "--gpu", "SIM=1")
        version = await plane.deploy({"gpu": "SIM"})
        await plane.until(lambda: len(plane.running(version)) == 1, "one instance")
        old = {each.id for each in plane.live(version)}
        await plane.redeploy(version, {"gpu": "SIM", "maxRequestConcurrency": 2})
        await plane.until(
            lambda: len(plane.running(version)) == 1 and not old & {one.id for one in plane.live(version)},
            "replaced",
        )
        assert (await plane.ask(version)).status == 200


async def test_without_capacity_it_spills_to_the_second_specification_and_recovers(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("fast", "--gpu", "FAST=2")
        await plane.start_agent("slow", "--gpu", "SLOW=4")
        blocker = await plane.deploy({"gpu": "FAST", "minInstances": 2, "maxInstances": 2})
        await plane.until(lambda: len(plane.running(blocker)) == 2, "the preferred GPUs are taken")
        specifications = ({"gpu": "FAST", **FROM_ZERO}, {"gpu": "SLOW", **FROM_ZERO})
        version = await plane.deploy(*specifications, scaling=SOON)
        assert (await plane.ask(version)).status == 200
        assert {each.gpu for each in plane.of(version)} == {"SLOW"}
        await plane.until(lambda: not plane.live(version), "back to zero")
        await plane.undeploy(blocker)
        await plane.until(lambda: not plane.live(blocker), "the preferred GPUs are free")
        assert (await plane.ask(version)).status == 200
        assert "FAST" in {each.gpu for each in plane.of(version)}


async def test_what_finds_no_room_starts_as_soon_as_there_is_some(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("local", "--gpu", "SIM=2")
        blocker = await plane.deploy({"gpu": "SIM", "gpusPerInstance": 2})
        await plane.until(lambda: len(plane.running(blocker)) == 1, "all GPUs are taken")
        version = await plane.deploy({"gpu": "SIM", **FROM_ZERO})
        waiting = asyncio.create_task(plane.ask(version))
        await plane.until(
            lambda: any("no place for 1" in text or "no capacity" in text for text in plane.words()),
            "reported",
        )
        assert not plane.of(version)
        await plane.undeploy(blocker)
        assert (await waiting).status == 200


async def test_a_request_that_no_cluster_can_serve_is_explained(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("local", "--gpu", "SIM=2")
        version = await plane.deploy({"gpu": "H100", **FROM_ZERO})
        waiting = asyncio.create_task(plane.ask(version))
        why = "no place for 1 (local: no GPU H100, only CPU, SIM)"
        await plane.until(lambda: why in plane.words(), "the reason")
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_undeploying_drains(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent()
        version = await plane.deploy({}, SECONDS="0.3")
        await plane.until(lambda: len(plane.running(version)) == 1, "an instance")
        callers = [asyncio.create_task(plane.ask(version, number)) for number in range(8)]
        await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
        await plane.undeploy(version)
        answers = await asyncio.gather(*callers)
        assert Counter(answer.status for answer in answers) == {200: 8}
        await plane.until(lambda: not plane.live(version), "all ended")
        assert [each.state for each in plane.of(version)] == [InstanceState.COMPLETED]


async def test_messages_that_come_twice_change_nothing(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent()
        version = await plane.deploy({"minInstances": 2, "maxInstances": 2})
        await plane.until(lambda: len(plane.running(version)) == 2, "two instances")
        created = list(plane.creations)
        for each in created:
            await plane.publish_again(each)
        # A later message to the same agent was processed, so the copies before it were read too.
        other = await plane.deploy({})
        await plane.until(lambda: len(plane.running(other)) == 1, "another version's instance")
        assert {each.id for each in plane.live(version)} == {
            instance_id_of(each.message.request_id) for each in created
        }
        await plane.undeploy(version)
        await plane.until(lambda: not plane.live(version), "all ended")
        for each in created:
            await plane.publish_again(each)
        await plane.undeploy(other)
        await plane.until(lambda: not plane.live(other), "all ended")
        assert not plane.live(version)


async def test_a_function_that_does_not_start_is_not_tried_without_end(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent()
        version = await plane.deploy({}, source="raise SystemExit(3)")
        await plane.until(
            lambda: any("failed to start" in text for text in plane.words()), "reported that it waits", 120
        )
        created = len(plane.of(version))
        assert created <= 3


async def test_nothing_is_sent_to_a_cluster_without_heartbeat(tmp_path: Path) -> None:
    async with running_plane(tmp_path, flags=("--lost-after", "8")) as plane:
        await plane.start_agent("one")
        await plane.start_agent("two")
        plane.agents["one"].kill(signal.SIGSTOP)
        version = await plane.deploy({"minInstances": 2, "maxInstances": 2, "clusters": ["one", "two"]})
        await plane.until(lambda: len(plane.running(version)) == 2, "two instances")
        assert plane.places(plane.running(version)) == {"two"}
        plane.agents["one"].kill(signal.SIGCONT)


async def test_a_broker_that_was_killed_costs_no_instance(tmp_path: Path) -> None:
    async with running_plane(tmp_path, autoscalers=2) as plane:
        await plane.start_agent()
        version = await plane.deploy({"minInstances": 2, "maxInstances": 2})
        await plane.until(lambda: len(plane.running(version)) == 2, "two instances")
        before = {each.id for each in plane.live(version)}
        await plane.platform.broker.kill()
        # Longer than the lease.
        await plane.until(
            lambda: any("does not lead any more" in child.text() for child in plane.autoscalers), "no leader"
        )
        await plane.platform.broker.restart()
        other = await plane.deploy(FROM_ZERO)
        assert (await plane.ask(other)).status == 200
        assert {each.id for each in plane.live(version)} == before


async def test_a_termination_that_arrives_before_its_creation_wins(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        agent = await plane.start_agent()
        agent.kill(signal.SIGSTOP)
        version = await plane.deploy({})
        await plane.until(lambda: len(plane.live(version)) == 1, "a record")
        await plane.undeploy(version)
        await plane.until(lambda: bool(plane.terminations), "an order to end it")
        agent.kill(signal.SIGCONT)
        await plane.until(lambda: not plane.live(version), "ended")
        assert not [each for each in plane.of(version) if each.pid is not None]
