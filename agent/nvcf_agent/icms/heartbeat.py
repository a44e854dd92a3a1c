"""The cluster's heartbeat: every few seconds, and at once when its free capacity has changed."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from nvcf_agent.errors import AgentError
from nvcf_agent.icms.client import IcmsClient
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
    _failing: bool = False

    async def beat(self) -> None:
        """Send one heartbeat. A control plane that does not answer is logged once."""
        try:
            answer = await self.client.heartbeat(self.body())
        except AgentError as error:
            if not self._failing:
                _log.warning("the control plane takes no heartbeat: %s", error)
            self._failing = True
            return
        except ContractError as error:
            # NVIDIA's control plane may add actions; what cannot be read asks for nothing.
            _log.warning("the answer to a heartbeat cannot be read: %s", error)
            answer = HeartbeatAnswer(HeartbeatAction.ACCEPTED)
        if self._failing:
            _log.info("the control plane takes heartbeats again")
        self._failing = False
        self.on_answer(answer)

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            sent = self.body()
            await self.beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.seconds):
                    while self._failing or self.body() == sent:
                        self.changed.clear()
                        await self.changed.wait()
