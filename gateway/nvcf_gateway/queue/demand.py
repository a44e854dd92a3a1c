"""Demand reports for the autoscaler: counters every second, and a wake-up at once.

Reports are core messages. The next report replaces a lost one, since counters only grow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client

from nvcf_broker.connection import describe_error
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.registry import VersionIndex
from nvcf_gateway.stats.history import History
from nvcf_otel.spans import TRACEPARENT
from nvcf_proto.compute import DEMAND_REPORT_SECONDS, DemandReport, demand_subject, wake_subject

_log = logging.getLogger(__name__)

REPEAT_REPORTS = 3
FORGET_AFTER = 3600.0


@dataclass
class Counter:
    """Counters of one version; times are passed in (seconds, any clock that only grows)."""

    arrivals: int = 0
    completions: int = 0
    waiting: int = 0
    busy_seconds: float = 0.0
    updated_at: float = 0.0
    unreported: int = REPEAT_REPORTS

    def arrived(self, now: float) -> None:
        """Count one more waiting request."""
        self.advance(now)
        self.arrivals += 1
        self.waiting += 1
        self.unreported = REPEAT_REPORTS

    def left(self, now: float, *, completed: bool) -> None:
        """Count one waiting request less."""
        self.advance(now)
        self.waiting -= 1
        self.completions += completed
        self.unreported = REPEAT_REPORTS

    def advance(self, now: float) -> None:
        """Bring the integral up to `now`."""
        self.busy_seconds += self.waiting * max(0.0, now - self.updated_at)
        self.updated_at = now

    def due(self) -> bool:
        """Return whether a report is due: while requests wait, and a few times after the last change."""
        if self.waiting > 0:
            return True
        if self.unreported > 0:
            self.unreported -= 1
            return True
        return False


@dataclass(slots=True)
class Tally:
    """The result of one request, as far as it is known when it no longer waits here."""

    answered: bool = False
    failed: bool = False


class Counted:
    """Counts one request while it waits, as a context manager.

    Thousands wait at a time, and this takes less memory than a generator.
    """

    __slots__ = ("_began", "_clock", "_counter", "_history", "_tally", "_version_id")

    def __init__(
        self, version_id: str, counter: Counter, history: History, clock: Callable[[], float]
    ) -> None:
        self._version_id = version_id
        self._counter = counter
        self._history = history
        self._clock = clock
        self._tally = Tally()
        self._began = clock()

    def __enter__(self) -> Tally:
        self._counter.arrived(self._began)
        self._history.arrived(self._version_id, self._began)
        return self._tally

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        tally, now = self._tally, self._clock()
        if isinstance(error, HttpProblem):
            tally.failed = error.status >= 500
        self._counter.left(now, completed=tally.answered)
        seconds = now - self._began if tally.answered else None
        self._history.left(self._version_id, now, seconds, failed=tally.failed)


class Demand:
    """Counts this replica's requests and reports them; `history` covers the last minutes."""

    def __init__(
        self, client: Client, gateway_id: str, index: VersionIndex, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._gateway_id = gateway_id
        self._index = index
        self._clock = clock
        self._counters: dict[str, Counter] = {}
        self.history = History(clock())

    def counted(self, version_id: str) -> Counted:
        """Count one request while it waits; the caller sets the result in the tally."""
        counter = self._counters.get(version_id)
        if counter is None:
            counter = self._counters[version_id] = Counter(updated_at=self._clock())
        return Counted(version_id, counter, self.history, self._clock)

    def waiting(self) -> list[tuple[str, int]]:
        """Return versions with the number of their requests that wait here; safe in any thread."""
        return [(version_id, counter.waiting) for version_id, counter in tuple(self._counters.items())]

    async def queued(self, version_id: str, request_id: str, trace: Mapping[str, str]) -> bool:
        """Wake the autoscaler if no instance can take a request that was queued; return whether that is so.

        `trace` is the request's own trace context, to which the autoscaler's decision links.
        """
        if self._index.is_running(version_id):
            return False
        headers = {TRACEPARENT: trace[TRACEPARENT]} if TRACEPARENT in trace else None
        await self._client.publish(wake_subject(version_id), request_id.encode(), headers=headers)
        return True

    async def report(self) -> None:
        """Publish reports until cancelled."""
        while True:
            await asyncio.sleep(DEMAND_REPORT_SECONDS)
            now = self._clock()
            try:
                for version_id, counter in tuple(self._counters.items()):
                    await self._report_one(version_id, counter, now)
            except (nats.errors.Error, OSError) as error:
                _log.debug("demand not reported: %s", describe_error(error))

    async def _report_one(self, version_id: str, counter: Counter, now: float) -> None:
        if not counter.due():
            if now - counter.updated_at > FORGET_AFTER:
                del self._counters[version_id]
            return
        counter.advance(now)
        report = DemandReport(
            gateway_id=self._gateway_id,
            version_id=version_id,
            at=now,
            arrivals=counter.arrivals,
            completions=counter.completions,
            waiting=counter.waiting,
            busy_seconds=counter.busy_seconds,
        )
        await self._client.publish(demand_subject(version_id), report.to_json())
