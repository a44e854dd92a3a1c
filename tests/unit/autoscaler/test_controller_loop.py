"""When versions are looked at: the loop with reconciler that only note that they happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from nvcf_autoscaler.controller.loop import AT_ONCE, ControlLoop
from nvcf_autoscaler.controller.version_state import MIN_RECONCILE_INTERVAL, VersionState
from nvcf_broker.errors import BrokerUnavailableError, RevisionConflictError
from tests.support.waiting import eventually

FAR = float("inf")


class VersionReconciler:
    """Notes reconciler; `work` is what a look does."""

    def __init__(self, work: Callable[[str], Coroutine[Any, Any, float]]) -> None:
        self.work = work
        self.seen: list[str] = []

    async def reconcile(self, version_id: str, state: VersionState) -> float:
        self.seen.append(version_id)
        return await self.work(version_id)


async def nothing(version_id: str) -> float:
    return FAR


class Running:
    """The loop for the length of a context."""

    def __init__(self, control: ControlLoop) -> None:
        self._control = control

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._control.run())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def test_what_happens_during_a_look_asks_for_another() -> None:
    gate = asyncio.Event()

    async def slow(version_id: str) -> float:
        await gate.wait()
        return FAR

    reconciler = VersionReconciler(slow)
    control = ControlLoop(reconciler, lambda: {"v"}, lambda: True)
    async with Running(control):
        await eventually(lambda: reconciler.seen == ["v"])
        control.wake("v")
        gate.set()
        await eventually(lambda: reconciler.seen == ["v", "v"])


async def test_a_replica_that_does_not_lead_looks_at_nothing() -> None:
    leads = False
    reconciler = VersionReconciler(nothing)
    control = ControlLoop(reconciler, lambda: {"v"}, lambda: leads)
    async with Running(control):
        control.wake("v")
        await asyncio.sleep(0.1)
        assert not reconciler.seen
        leads = True
        control.wake_all()
        await eventually(lambda: reconciler.seen == ["v"])


async def test_what_another_leader_has_counted_is_not_counted_again() -> None:
    control = ControlLoop(VersionReconciler(nothing), lambda: {"v"}, lambda: True)
    state = control.state_of("v")
    state.gpu_time_until = time.time() - 3600
    state.cold_start(time.time() - 3600, None)
    control.wake_all()
    assert state.gpu_time_until is None
    assert state.cold_start_at is None
    assert state.woken


async def test_a_version_that_is_undeployed_without_instances_is_told_no_more() -> None:
    versions = {"v"}
    gone: list[str] = []
    reconciler = VersionReconciler(nothing)
    control = ControlLoop(reconciler, lambda: set(versions), lambda: True, gone.append)
    async with Running(control):
        await eventually(lambda: reconciler.seen == ["v"])
        assert not gone
        versions.clear()
        control.wake("v")
        await eventually(lambda: "v" in gone)


async def test_a_failed_look_is_repeated_and_hurts_no_other_version() -> None:
    async def failing(version_id: str) -> float:
        if version_id == "bad":
            raise BrokerUnavailableError("no broker")
        if version_id == "late":
            raise RevisionConflictError("somebody was faster")
        return FAR

    reconciler = VersionReconciler(failing)
    control = ControlLoop(reconciler, lambda: {"bad", "late", "good"}, lambda: True)
    async with Running(control):
        await eventually(lambda: min(reconciler.seen.count("bad"), reconciler.seen.count("late")) >= 2)
    assert reconciler.seen.count("good") == 1


async def test_a_version_that_is_woken_all_the_time_is_not_looked_at_all_the_time() -> None:
    reconciler = VersionReconciler(nothing)
    control = ControlLoop(reconciler, lambda: {"v"}, lambda: True)
    begun = time.monotonic()
    async with Running(control):
        while time.monotonic() - begun < 0.5:
            control.wake("v")
            await asyncio.sleep(0.001)
    took = time.monotonic() - begun
    assert 2 <= len(reconciler.seen) <= took / MIN_RECONCILE_INTERVAL + 2


async def test_a_woken_version_waits_for_one_group_of_others_at_most() -> None:
    others = {f"other-{number}" for number in range(5 * AT_ONCE)}
    control: ControlLoop

    async def waking(version_id: str) -> float:
        if len(reconciler.seen) == AT_ONCE:
            control.wake("mine")
        await asyncio.sleep(0)
        return FAR

    reconciler = VersionReconciler(waking)
    ids: set[str] = set(others)
    control = ControlLoop(reconciler, lambda: ids, lambda: True)
    # Looked at just now, so that it is only due once it is woken.
    control.state_of("mine").reconcile_at = FAR
    ids.add("mine")
    async with Running(control):
        await eventually(lambda: "mine" in reconciler.seen)
    assert reconciler.seen.index("mine") < 2 * AT_ONCE + 1


async def test_what_found_no_room_is_woken_by_new_room() -> None:
    reconciler = VersionReconciler(nothing)
    control = ControlLoop(reconciler, lambda: {"short", "fine"}, lambda: True)
    async with Running(control):
        await eventually(lambda: len(reconciler.seen) == 2)
        control.state_of("short").lacks_capacity = True
        control.wake_waiting_for_capacity()
        await eventually(lambda: reconciler.seen.count("short") == 2)
    assert reconciler.seen.count("fine") == 1


async def test_a_look_that_is_due_again_at_once_does_not_spin() -> None:
    async def eager(version_id: str) -> float:
        return 0.0

    reconciler = VersionReconciler(eager)
    control = ControlLoop(reconciler, lambda: {"v"}, lambda: True)
    begun = time.monotonic()
    async with Running(control):
        await asyncio.sleep(0.3)
    took = time.monotonic() - begun
    assert 2 <= len(reconciler.seen) <= took / MIN_RECONCILE_INTERVAL + 2


async def test_a_version_in_use_is_looked_at_every_second() -> None:
    reconciler = VersionReconciler(nothing)
    control = ControlLoop(reconciler, lambda: {"used", "idle"}, lambda: True)
    async with Running(control):
        await eventually(lambda: len(reconciler.seen) == 2)
        control.in_use("used")
        await eventually(lambda: reconciler.seen.count("used") == 2)
    assert reconciler.seen.count("idle") == 1
