"""Makes the calls that are due, and hands on what was answered."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from nvcf_agent.errors import AgentError, ControlPlaneError, StoreError
from nvcf_agent.icms.answers import Outcome, of_acknowledgement, of_report
from nvcf_agent.icms.client import IcmsClient
from nvcf_agent.icms.outbox import Outbox
from nvcf_agent.icms.reports import Key, Wanted
from nvcf_agent.timings import Timings
from nvcf_proto.icms.reports import Acknowledgement, StatusReport

_log = logging.getLogger(__name__)

_CALLS_AT_ONCE = 16
_LONGEST_SLEEP_SECONDS = 60.0


class Told(Protocol):
    """The agent, as the reporter needs it."""

    def wanted_calls(self) -> dict[Key, Wanted]:
        """Return all that the control plane is to know."""
        ...

    async def on_outcome(self, key: Key, call: Wanted, outcome: Outcome) -> None:
        """Act on an answer: DONE or CLOSED. Raises `StoreError`."""
        ...


@dataclass
class Reporter:
    """Sends acknowledgements and status reports, each at once and until it is answered."""

    client: IcmsClient
    agent: Told
    timings: Timings
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    _limit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CALLS_AT_ONCE))
    _failing: bool = False
    _repeated_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.timings)

    def repeat_all(self) -> None:
        """Tell the control plane about everything again, at most every `report_all_again` seconds."""
        if self.monotonic() >= self._repeated_at + self.timings.report_all_again:
            self._repeated_at = self.monotonic()
            _log.warning("the control plane knows of fewer instances than there are: reporting all again")
            self.outbox.repeat()
            self.woken.set()

    def repeat(self, request_id: str) -> None:
        """Tell the control plane about a request again, now."""
        self.outbox.repeat(request_id)
        self.woken.set()

    def recovered(self) -> None:
        """Try again at once: another call was answered."""
        if self._failing:
            self._failing = False
            self.outbox.recovered()
            self.woken.set()

    async def run(self) -> None:
        """Make calls until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self.woken.clear()
                began = self.monotonic()
                wanted = self.agent.wanted_calls()
                for key in self.outbox.due(wanted, self.monotonic()):
                    group.create_task(self._call(key, wanted[key]), name=f"report {key.request_id}")
                pause = min(self.outbox.next_due(wanted) - self.monotonic(), _LONGEST_SLEEP_SECONDS)
                busy = self.monotonic() - began
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(pause, 0.0)):
                        await self.woken.wait()
                # Thousands of calls are looked at in at most half of the time: changes gather meanwhile.
                await asyncio.sleep(busy)

    async def flush(self, deadline: float) -> None:
        """Make each call that is due once, within `deadline` seconds: the agent stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                wanted = self.agent.wanted_calls()
                due = self.outbox.due(wanted, self.monotonic())
                await asyncio.gather(*(self._call(key, wanted[key]) for key in due))

    async def _call(self, key: Key, call: Wanted) -> None:
        try:
            async with self._limit:
                outcome = await self._outcome(key, call)
            if outcome is not Outcome.RETRY:
                await self.agent.on_outcome(key, call, outcome)
                self.outbox.taken(key, call.body, self.monotonic())
        except StoreError as error:
            # The same call once more does no harm; an answer that is not stored does.
            _log.error("%s", error)
            self._fail(key)
        finally:
            self.outbox.release(key)
            self.woken.set()

    async def _outcome(self, key: Key, call: Wanted) -> Outcome:
        status: int | None = 200
        try:
            await self._send(key, call)
        except AgentError as error:
            status = error.status if isinstance(error, ControlPlaneError) else None
            outcome = self._judge(call, status)
            if outcome is Outcome.RETRY:
                level = logging.DEBUG if self._failing else logging.WARNING
                _log.log(level, "the control plane takes no report, trying again: %s", error)
                self._failing = True
                self._fail(key)
            else:
                _log.info("%s", error)
            return outcome
        return Outcome.DONE

    def _fail(self, key: Key) -> None:
        self.outbox.failed(key, self.monotonic(), random.random())  # noqa: S311 - only spreads calls

    def _send(self, key: Key, call: Wanted) -> Awaitable[None]:
        match call.body:
            case Acknowledgement():
                return self.client.acknowledge(key.request_id, call.body, call.trace)
            case StatusReport():
                return self.client.report(key.request_id, key.instance_id or "", call.body)

    def _judge(self, call: Wanted, status: int | None) -> Outcome:
        if isinstance(call.body, Acknowledgement):
            unknown_for = self.timings.unknown_request
            return of_acknowledgement(status, age=self.wall() - call.since, unknown_for=unknown_for)
        return of_report(status, terminated=call.is_terminated)
