"""Agents, workers and autoscalers are killed under load: no request or instance is lost or doubled."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from nvcf_proto.journal import FILE_NAME, read_orphans
from nvcf_proto.models import Instance, InstanceState
from tests.support.platform.compute_plane import Load, Plane, load, running_plane
from tests.support.platform.gateways import Version, control_flags

FIXED = {"gpu": "SIM", "minInstances": 4, "maxInstances": 4}
SOON_REDELIVERED = ("--ack-wait", "5")


def workers(plane: Plane) -> dict[str, list[int]]:
    """Return the running processes by instance id. The id is in the environment of a process."""
    found: dict[str, list[int]] = {}
    for child in plane.agents.values():
        if not child.running:
            continue
        for process in psutil.Process(child.pid).children():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and (own := process.environ().get("INSTANCE_ID")):
                    found.setdefault(own, []).append(process.pid)
            except psutil.Error:
                continue
    return found


def told_alike(plane: Plane, *versions: Version) -> bool:
    """Return whether records and processes agree: one process for each running instance and no other."""
    records = {each.id: [each.pid] for version in versions for each in plane.running(version)}
    live = sum(len(plane.live(version)) for version in versions)
    return records == workers(plane) and len(records) == live


def devices(instances: list[Instance]) -> Counter[tuple[str, str]]:
    """Count the live instances that have each GPU of each cluster."""
    return Counter(
        (each.cluster_id, device) for each in instances for device in (each.visible_devices or "").split(",")
    )


def every_request_is_answered_once(running: Load) -> None:
    """Assert that the numbers of the responses have no gap and no duplicate."""
    assert running.statuses().keys() == {200}
    numbers = sorted(answer.body["id"] for answer in running.answers)
    assert len(numbers) == len(set(numbers))
    for caller in range(4):
        own = [number for number in numbers if number % 4 == caller]
        assert own == list(range(caller, caller + 4 * len(own), 4))
    slowest = max(answer.seconds for answer in running.answers)
    print(f"\n{len(numbers)} requests, all answered, none twice; the slowest took {slowest:.1f} s")  # noqa: T201


async def two_clusters(plane: Plane) -> Version:
    """Four instances on two clusters with three GPUs each."""
    for cluster in ("one", "two"):
        await plane.start_agent(cluster, "--gpu", "SIM=3")
    version = await plane.deploy(FIXED, SECONDS="0.05")
    await plane.until(lambda: len(plane.running(version)) == 4, "four instances")
    return version


@pytest.mark.timeout(180)
@pytest.mark.slow
async def test_agents_killed_in_turn_lose_and_double_nothing(tmp_path: Path) -> None:
    async with running_plane(tmp_path, gateway=SOON_REDELIVERED) as plane:
        version = await two_clusters(plane)
        before = {each.id: each.visible_devices for each in plane.running(version)}
        created = plane.ordered()
        async with load(plane, version) as running:
            for cluster in ("one", "two", "one"):
                seen = len(running.answers)
                await plane.until(lambda seen=seen: len(running.answers) > seen + 20, "load")  # type: ignore[misc]
                old = {each.pid for each in plane.running(version) if plane.place(each) == cluster}
                plane.agents[cluster].kill(signal.SIGKILL)
                await plane.agents[cluster].wait()
                await plane.start_agent(cluster, "--gpu", "SIM=3")
                await plane.until(
                    lambda old=old: (
                        told_alike(plane, version)  # type: ignore[misc]
                        and len(plane.running(version)) == 4
                        and not old & {each.pid for each in plane.running(version)}
                    ),
                    "each instance is back as one process",
                )
            seen = len(running.answers)
            await plane.until(lambda: len(running.answers) > seen + 20, "and serves")
        every_request_is_answered_once(running)
        # Exactly the same instances have the same GPUs.
        assert {each.id: each.visible_devices for each in plane.running(version)} == before
        assert plane.ordered() == created
        assert max(devices(plane.live(version)).values()) == 1
        await plane.undeploy(version)
        await plane.until(lambda: not plane.live(version) and not workers(plane), "nothing is left")


@pytest.mark.timeout(120)
@pytest.mark.slow
async def test_requests_of_an_instance_killed_while_draining_are_requeued_at_once(tmp_path: Path) -> None:
    """The instance does not start again. Its agent requeues its requests before the ack wait of 30 s."""
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("one", "--gpu", "SIM=1")
        await plane.start_agent("two", "--gpu", "SIM=1")
        first = await plane.deploy({"gpu": "SIM", "clusters": ["one"]}, SECONDS="8")
        await plane.until(lambda: len(plane.running(first)) == 1, "an instance")
        asked = asyncio.create_task(plane.ask(first, 7))
        (instance,) = plane.running(first)
        journal = tmp_path / "agent-one" / "instances" / instance.id / "shared" / FILE_NAME
        await plane.until(lambda: bool(read_orphans(journal.read_bytes(), instance.id)), "it is in work")
        # The instance is moved to another cluster. Its cluster is killed during the move.
        await plane.redeploy(first, {"gpu": "SIM", "clusters": ["two"]})
        await plane.until(lambda: bool(plane.of(first)[0].draining_since), "it is draining")
        await plane.kill_cluster("one")
        killed = time.monotonic()
        await plane.start_agent("one", "--gpu", "SIM=1")
        answer = await asked
        assert (answer.status, answer.body["id"]) == (200, 7)
        assert answer.body["instance"] != instance.id
        assert time.monotonic() - killed < 25
        assert "1 requests that it held are queued again" in plane.agents["one"].text()


@pytest.mark.timeout(180)
@pytest.mark.slow
async def test_a_killed_cluster_is_replaced_and_its_return_doubles_nothing(tmp_path: Path) -> None:
    flags = ("--lost-after", "6")
    async with running_plane(tmp_path, flags=flags, gateway=SOON_REDELIVERED) as plane:
        for cluster in ("one", "two"):
            await plane.start_agent(cluster, "--gpu", "SIM=4")
        version = await plane.deploy(FIXED, SECONDS="0.05")
        await plane.until(lambda: len(plane.running(version)) == 4, "four instances")
        there = {each.id for each in plane.live(version) if plane.place(each) == "one"}
        assert len(there) == 2
        async with load(plane, version) as running:
            await plane.until(lambda: len(running.answers) > 20, "load")
            await plane.kill_cluster("one")
            await plane.until(
                lambda: len(plane.running(version)) == 4 and plane.places(plane.running(version)) == {"two"},
                "replaced on the other",
            )
            # The cluster restarts with its persisted instances. They were replaced and must not run again.
            await plane.start_agent("one", "--gpu", "SIM=4")
            await plane.until(lambda: told_alike(plane, version), "records and processes agree")
            seen = len(running.answers)
            await plane.until(lambda: len(running.answers) > seen + 40, "and the others serve on")
            assert told_alike(plane, version)
            assert not there & workers(plane).keys()
        every_request_is_answered_once(running)
        assert {each.state for each in plane.of(version) if each.id in there} <= {
            InstanceState.FAILED,
            InstanceState.COMPLETED,
        }
        assert len(plane.live(version)) == 4


@pytest.mark.timeout(180)
@pytest.mark.slow
async def test_a_leader_killed_in_the_middle_of_a_burst_doubles_nothing(tmp_path: Path) -> None:
    async with running_plane(tmp_path, autoscalers=2) as plane:
        for cluster in ("one", "two"):
            await plane.start_agent(cluster, "--gpu", "SIM=3")
        version = await plane.deploy(
            {**FIXED, "minInstances": 0}, scaling={"scaleToZeroDelay": 1.0}, SECONDS="0.1"
        )
        asked = [asyncio.create_task(plane.ask(version, number)) for number in range(200)]
        # Right after the first creation message, before the next ones.
        await plane.until(lambda: bool(plane.creations), "the first order")
        leading = [child for child in plane.autoscalers if "this replica leads" in child.text()]
        assert len(leading) == 1
        leading[0].kill(signal.SIGKILL)
        answers = await asyncio.gather(*asked)
        assert Counter(answer.status for answer in answers) == {200: 200}
        assert sorted(answer.body["id"] for answer in answers) == list(range(200))
        assert len(plane.of(version)) <= 4
        assert max(devices(plane.of(version)).values()) == 1
        assert plane.ordered().keys() == {each.request_id for each in plane.of(version)}, (
            "whatever was ordered has a record"
        )
        await plane.until(lambda: not plane.live(version) and not workers(plane), "back to zero")


@pytest.mark.timeout(180)
@pytest.mark.slow
async def test_a_gateway_that_hangs_over_orders_and_comes_back_doubles_nothing(tmp_path: Path) -> None:
    async with running_plane(tmp_path) as plane:
        await plane.start_agent("one", "--gpu", "SIM=8")
        second = await plane.platform.start_gateway(*control_flags(plane.platform.broker))
        # Half of the orders go to a gateway that does not answer.
        second.child.kill(signal.SIGSTOP)
        version = await plane.deploy({"gpu": "SIM", "minInstances": 8, "maxInstances": 8})
        await plane.until(
            lambda: sum(each.acknowledged_at is not None for each in plane.of(version)) == 8,
            "all are taken up, by way of the other gateway",
        )
        # Now it carries out what it was asked before.
        second.child.kill(signal.SIGCONT)
        await plane.until(lambda: len(plane.running(version)) == 8, "all run")
        other = await plane.deploy({})
        await plane.until(lambda: len(plane.running(other)) == 1, "another version's instance")
        await plane.until(lambda: told_alike(plane, version, other), "records and processes agree")
        assert len(plane.of(version)) == 8
        second.child.kill(signal.SIGKILL)
        third = await plane.deploy({})
        await plane.until(lambda: len(plane.running(third)) == 1, "orders go on without it")
        assert plane.ordered().keys() == {each.request_id for each in plane.instances.values()}
