"""The control loop: when each version is reconciled.

A version is reconciled when something happens to it, when the policy asks for it, and every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from opentelemetry.trace import SpanContext

from nvcf_autoscaler.controller.clock import WallClock
from nvcf_autoscaler.controller.version_state import MIN_RECONCILE_INTERVAL, VersionState
from nvcf_broker.errors import BrokerError, RevisionConflictError
from nvcf_broker.requests import raise_if_cancelled

_log = logging.getLogger(__name__)

MAX_RECONCILE_INTERVAL = 5.0
# While requests come, the requests queued and in flight are sampled this often.
ACTIVE_RECONCILE_INTERVAL = 1.0
MAX_PAUSE = 0.25
RETRY_INTERVAL = 1.0
FORGET_AFTER = 600.0
AT_ONCE = 16


class VersionReconciler(Protocol):
    """Reconciles one version."""

    async def reconcile(self, version_id: str, state: VersionState) -> float:
        """Reconcile a version and return when it is due again (Unix seconds). Raises BrokerError."""
        ...


class ControlLoop:
    """Reconciles all versions while this replica leads.

    `gone` is called with each version that does not exist any more, repeatedly until it is forgotten.
    `clock_set` is called with the time when the wall clock was set; the states of all versions begin anew.
    """

    def __init__(
        self,
        reconciler: VersionReconciler,
        version_ids: Callable[[], set[str]],
        leads: Callable[[], bool],
        gone: Callable[[str], None] = lambda _: None,
        clock_set: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._clock = WallClock(time.time(), time.monotonic())
        self._clock_set = clock_set
        self._gone = gone
        self._reconciler = reconciler
        self._version_ids = version_ids
        self._leads = leads
        self._states: dict[str, VersionState] = {}
        self._wake = asyncio.Event()

    def state_of(self, version_id: str) -> VersionState:
        """Return the state of one version; a new one starts empty."""
        found = self._states.get(version_id)
        if found is None:
            found = self._states[version_id] = VersionState(known_since=time.time())
        return found

    def wake(self, version_id: str) -> None:
        """Reconcile a version at once, because something happened to it."""
        self.state_of(version_id).woken = True
        self._wake.set()

    def cold_start(self, version_id: str, by: SpanContext | None) -> None:
        """Reconcile a version at once, because a request of the trace `by` has met no instance."""
        self.state_of(version_id).cold_start(time.time(), by)
        self.wake(version_id)

    def wake_all(self) -> None:
        """Reconcile all versions, because this replica leads from now on."""
        for state in self._states.values():
            state.gained_leadership()
        for version_id in self._version_ids():
            self.wake(version_id)

    def wake_waiting_for_capacity(self) -> None:
        """Reconcile the versions that lack capacity, because there may be some now."""
        for version_id, state in self._states.items():
            if state.lacking:
                self.wake(version_id)

    def lacking_capacity(self) -> dict[str, int]:
        """Return how many instances of each version found no room, where some did not."""
        return {version_id: state.lacking for version_id, state in self._states.items() if state.lacking}

    def in_use(self, version_id: str) -> None:
        """Reconcile a version often enough to see how many requests are in flight."""
        state = self.state_of(version_id)
        # This does not wake the loop, since each version reports every second.
        state.reconcile_at = min(state.reconcile_at, state.reconciled_at + ACTIVE_RECONCILE_INTERVAL)

    async def run(self) -> None:
        """Reconcile versions until cancelled. Does nothing while another replica leads."""
        while True:
            raise_if_cancelled()
            self._wake.clear()
            delay = MAX_PAUSE
            if self._leads():
                delay = await self._round()
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _round(self) -> float:
        """Reconcile the versions that are due, woken ones first. Return the seconds until the next one."""
        now = time.time()
        step = self._clock.step(now, time.monotonic())
        if step:
            _log.warning("the clock was set by %+.0f s: silence and intervals count from now on", step)
            self._states = {each: VersionState(known_since=now, woken=True) for each in self._states}
            self._clock_set(now)
        version_ids = self._version_ids()
        self._forget(now, version_ids)
        due = [each for each in version_ids if self.state_of(each).due_at <= now]
        due.sort(key=lambda each: (not self.state_of(each).woken, self.state_of(each).due_at))
        async with asyncio.TaskGroup() as tasks:
            for version_id in due[:AT_ONCE]:
                tasks.create_task(self._reconcile(version_id, self.state_of(version_id)))
        next_at = min((self.state_of(each).due_at for each in version_ids), default=float("inf"))
        return min(MAX_PAUSE, max(0.0, next_at - time.time()))

    async def _reconcile(self, version_id: str, state: VersionState) -> None:
        now = time.time()
        # A wake-up from here on asks for another reconcile.
        state.woken = False
        state.reconciled_at = now
        state.reconcile_at = now + MAX_RECONCILE_INTERVAL
        try:
            due = await self._reconciler.reconcile(version_id, state)
            state.reconcile_at = min(state.reconcile_at, max(due, now + MIN_RECONCILE_INTERVAL))
        except RevisionConflictError as error:
            # Another writer was faster. Its change will wake this version.
            _log.debug("%s", error, extra={"version_id": version_id})
            state.reconcile_at = now + RETRY_INTERVAL
        except BrokerError as error:
            _log.warning("%s", error, extra={"version_id": version_id})
            state.reconcile_at = now + RETRY_INTERVAL

    def _forget(self, now: float, version_ids: set[str]) -> None:
        for version_id in self._states.keys() - version_ids:
            state = self._states[version_id]
            self._gone(version_id)
            if now - max(state.reconciled_at, state.known_since) > FORGET_AFTER:
                del self._states[version_id]
