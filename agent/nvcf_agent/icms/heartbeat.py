"""The cluster's heartbeat: every few seconds, and at once when its free capacity has changed."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from nvcf_agent.errors import AgentError
from nvcf_agent.icms.client import IcmsClient
from nvcf_agent.timings import growing_pause
from nvcf_proto.errors import ContractError
from nvcf_proto.icms.reports import Heartbeat, HeartbeatAction, HeartbeatAnswer

_log = logging.getLogger(__name__)

DEFAULT_SECONDS = 2.0


@dataclass
class Beats:
    """Sends heartbeats. `body` returns the next one; `on_answer` is called with each answer."""

    client: IcmsClient
    body: Callable[[], Heartbeat]
    on_answer: Callable[[HeartbeatAnswer], None]
    seconds: float = DEFAULT_SECONDS
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    retry: tuple[float, float] = (3.0, 60.0)
    """First and longest pause after a heartbeat that was not answered."""
    _failures: int = 0

    async def beat(self) -> None:
        """Send one heartbeat. A control plane that does not answer is logged once."""
        try:
            answer = await self.client.heartbeat(self.body())
        except AgentError as error:
            if not self._failures:
                _log.warning("the control plane takes no heartbeat: %s", error)
            self._failures += 1
            return
        except ContractError as error:
            # NVIDIA's control plane may add actions; what cannot be read asks for nothing.
            _log.warning("the answer to a heartbeat cannot be read: %s", error)
            answer = HeartbeatAnswer(HeartbeatAction.ACCEPTED)
        if self._failures:
            _log.info("the control plane takes heartbeats again")
        self._failures = 0
        self.on_answer(answer)

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            sent = self.body()
            await self.beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    while self._failures or self.body() == sent:
                        self.changed.clear()
                        await self.changed.wait()

    def _pause(self) -> float:
        if not self._failures:
            return self.seconds
        chance = random.random()  # noqa: S311 - only spreads calls
        return min(self.seconds, growing_pause(*self.retry, self._failures, chance))
