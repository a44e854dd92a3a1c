"""When versions are reconciled: the loop with a reconciler that only notes the calls."""

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
    """Notes the calls; `work` is what a reconcile does."""

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

    def __init__(self, loop: ControlLoop) -> None:
        self._control = loop

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._control.run())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def test_a_wake_up_during_a_reconcile_causes_another() -> None:
    gate = asyncio.Event()

    async def slow(version_id: str) -> float:
        await gate.wait()
        return FAR

    reconciler = VersionReconciler(slow)
    loop = ControlLoop(reconciler, lambda: {"v"}, lambda: True)
    async with Running(loop):
        await eventually(lambda: reconciler.seen == ["v"])
        loop.wake("v")
        gate.set()
        await eventually(lambda: reconciler.seen == ["v", "v"])


async def test_a_replica_that_does_not_lead_reconciles_nothing() -> None:
    leads = False
    reconciler = VersionReconciler(nothing)
    loop = ControlLoop(reconciler, lambda: {"v"}, lambda: leads)
    async with Running(loop):
        loop.wake("v")
        await asyncio.sleep(0.1)
        assert not reconciler.seen
        leads = True
        loop.wake_all()
        await eventually(lambda: reconciler.seen == ["v"])


async def test_what_another_leader_has_counted_is_not_counted_again() -> None:
    loop = ControlLoop(VersionReconciler(nothing), lambda: {"v"}, lambda: True)
    state = loop.state_of("v")
    state.gpu_time_until = time.time() - 3600
    state.cold_start(time.time() - 3600, None)
    loop.wake_all()
    assert state.gpu_time_until is None
    assert state.cold_start_at is None
    assert state.woken


async def test_a_version_that_is_undeployed_without_instances_is_gone() -> None:
    versions = {"v"}
    gone: list[str] = []
    reconciler = VersionReconciler(nothing)
    loop = ControlLoop(reconciler, lambda: set(versions), lambda: True, gone.append)
    async with Running(loop):
        await eventually(lambda: reconciler.seen == ["v"])
        assert not gone
        versions.clear()
        loop.wake("v")
        await eventually(lambda: "v" in gone)


async def test_a_failed_reconcile_is_repeated_and_hurts_no_other_version() -> None:
    async def failing(version_id: str) -> float:
        if version_id == "bad":
            raise BrokerUnavailableError("no broker")
        if version_id == "late":
            raise RevisionConflictError("another writer was faster")
        return FAR

    reconciler = VersionReconciler(failing)
    loop = ControlLoop(reconciler, lambda: {"bad", "late", "good"}, lambda: True)
    async with Running(loop):
        await eventually(lambda: min(reconciler.seen.count("bad"), reconciler.seen.count("late")) >= 2)
    assert reconciler.seen.count("good") == 1


async def test_a_version_that_is_woken_all_the_time_is_not_reconciled_all_the_time() -> None:
    reconciler = VersionReconciler(nothing)
    loop = ControlLoop(reconciler, lambda: {"v"}, lambda: True)
    begun = time.monotonic()
    async with Running(loop):
        while time.monotonic() - begun < 0.5:
            loop.wake("v")
            await asyncio.sleep(0.001)
    took = time.monotonic() - begun
    assert 2 <= len(reconciler.seen) <= took / MIN_RECONCILE_INTERVAL + 2


async def test_a_woken_version_waits_for_one_group_of_others_at_most() -> None:
    others = {f"other-{number}" for number in range(5 * AT_ONCE)}
    loop: ControlLoop

    async def waking(version_id: str) -> float:
        if len(reconciler.seen) == AT_ONCE:
            loop.wake("mine")
        await asyncio.sleep(0)
        return FAR

    reconciler = VersionReconciler(waking)
    ids: set[str] = set(others)
    loop = ControlLoop(reconciler, lambda: ids, lambda: True)
    # Reconciled just now, so that it is only due once it is woken.
    loop.state_of("mine").reconcile_at = FAR
    ids.add("mine")
    async with Running(loop):
        await eventually(lambda: "mine" in reconciler.seen)
    assert reconciler.seen.index("mine") < 2 * AT_ONCE + 1


async def test_a_version_without_capacity_is_woken_by_new_capacity() -> None:
    reconciler = VersionReconciler(nothing)
    loop = ControlLoop(reconciler, lambda: {"short", "fine"}, lambda: True)
    async with Running(loop):
        await eventually(lambda: len(reconciler.seen) == 2)
        loop.state_of("short").lacking = 1
        loop.wake_waiting_for_capacity()
        await eventually(lambda: reconciler.seen.count("short") == 2)
    assert reconciler.seen.count("fine") == 1


async def test_a_reconcile_that_is_due_again_at_once_does_not_spin() -> None:
    async def eager(version_id: str) -> float:
        return 0.0

    reconciler = VersionReconciler(eager)
    loop = ControlLoop(reconciler, lambda: {"v"}, lambda: True)
    begun = time.monotonic()
    async with Running(loop):
        await asyncio.sleep(0.3)
    took = time.monotonic() - begun
    assert 2 <= len(reconciler.seen) <= took / MIN_RECONCILE_INTERVAL + 2


async def test_a_version_in_use_is_reconciled_every_second() -> None:
    reconciler = VersionReconciler(nothing)
    loop = ControlLoop(reconciler, lambda: {"used", "idle"}, lambda: True)
    async with Running(loop):
        await eventually(lambda: len(reconciler.seen) == 2)
        loop.in_use("used")
        await eventually(lambda: reconciler.seen.count("used") == 2)
    assert reconciler.seen.count("idle") == 1
