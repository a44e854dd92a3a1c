"""The control loop: who is looked at when. Versions are looked at when something happens to them, when the
policy asked for it, and every few seconds anyway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from opentelemetry.trace import SpanContext

from nvcf_autoscaler.controller.version_state import SHORTEST_BETWEEN_LOOKS, Watched
from nvcf_broker.errors import BrokerError, RevisionConflictError
from nvcf_broker.requests import raise_if_cancelled

_log = logging.getLogger(__name__)

LONGEST_BETWEEN_LOOKS = 5.0
# While requests come, their number and that of those in work are sampled this often.
IN_USE_BETWEEN_LOOKS = 1.0
LONGEST_PAUSE = 0.25
AFTER_FAILURE = 1.0
FORGET_AFTER = 600.0
AT_ONCE = 16


class Looks(Protocol):
    """Looks at one version and acts; returns when to look again (Unix seconds). Raises BrokerError."""

    async def look(self, version_id: str, watched: Watched) -> float: ...


class Control:
    """Looks after all versions while this replica leads; `gone` is told which are not there any more, and
    again until they are forgotten.
    """

    def __init__(
        self,
        looks: Looks,
        version_ids: Callable[[], set[str]],
        leads: Callable[[], bool],
        gone: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._gone = gone
        self._looks = looks
        self._version_ids = version_ids
        self._leads = leads
        self._watched: dict[str, Watched] = {}
        self._wake = asyncio.Event()

    def watched(self, version_id: str) -> Watched:
        """The memory of one version."""
        found = self._watched.get(version_id)
        if found is None:
            found = self._watched[version_id] = Watched(known_since=time.time())
        return found

    def wake(self, version_id: str) -> None:
        """Something happened to a version: look at once."""
        self.watched(version_id).woken = True
        self._wake.set()

    def asked(self, version_id: str, by: SpanContext | None) -> None:
        """A request has met no instance: look at once. `by` is the trace that it belongs to."""
        self.watched(version_id).asked(time.time(), by)
        self.wake(version_id)

    def wake_all(self) -> None:
        """This replica leads from now on."""
        for watched in self._watched.values():
            watched.took_over()
        for version_id in self._version_ids():
            self.wake(version_id)

    def wake_short(self) -> None:
        """There may be room for what found none."""
        for version_id, watched in self._watched.items():
            if watched.short:
                self.wake(version_id)

    def in_use(self, version_id: str) -> None:
        """Requests come: look often enough to see how many are in work."""
        watched = self.watched(version_id)
        # Not worth waking the loop: there is a report of each version each second.
        watched.next_look = min(watched.next_look, watched.looked_at + IN_USE_BETWEEN_LOOKS)

    async def run(self) -> None:
        """Look after versions until cancelled; does nothing while another replica leads."""
        while True:
            raise_if_cancelled()
            self._wake.clear()
            delay = LONGEST_PAUSE
            if self._leads():
                delay = await self._round()
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _round(self) -> float:
        """Look at the versions that are due, woken ones first; seconds until the next one is."""
        now = time.time()
        version_ids = self._version_ids()
        self._forget(now, version_ids)
        due = [each for each in version_ids if self.watched(each).due_at <= now]
        due.sort(key=lambda each: (not self.watched(each).woken, self.watched(each).due_at))
        async with asyncio.TaskGroup() as tasks:
            for version_id in due[:AT_ONCE]:
                tasks.create_task(self._look(version_id, self.watched(version_id)))
        next_at = min((self.watched(each).due_at for each in version_ids), default=float("inf"))
        return min(LONGEST_PAUSE, max(0.0, next_at - time.time()))

    async def _look(self, version_id: str, watched: Watched) -> None:
        now = time.time()
        # What happens from here on asks for another look.
        watched.woken = False
        watched.looked_at = now
        watched.next_look = now + LONGEST_BETWEEN_LOOKS
        try:
            due = await self._looks.look(version_id, watched)
            watched.next_look = min(watched.next_look, max(due, now + SHORTEST_BETWEEN_LOOKS))
        except RevisionConflictError as error:
            # Somebody was faster; what they wrote is on its way here and wakes this version.
            _log.debug("%s", error, extra={"version_id": version_id})
            watched.next_look = now + AFTER_FAILURE
        except BrokerError as error:
            _log.warning("%s", error, extra={"version_id": version_id})
            watched.next_look = now + AFTER_FAILURE

    def _forget(self, now: float, version_ids: set[str]) -> None:
        for version_id in self._watched.keys() - version_ids:
            watched = self._watched[version_id]
            self._gone(version_id)
            if now - max(watched.looked_at, watched.known_since) > FORGET_AFTER:
                del self._watched[version_id]
