"""Record who changed which secrets: names, never values."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_gateway.secrets.owners import Owner
from nvcf_proto.compute import Event, event_stream_config, event_subject

_log = logging.getLogger(__name__)

KIND = "secret"
Action = Literal["set", "rotate", "delete"]


class SecretAudit:
    """Writes events of the kind `secret`, and one line each into the log."""

    def __init__(
        self, requests: Requester, replicas: int = 1, clock: Callable[[], float] = time.time
    ) -> None:
        self._jetstream = JetStream(requests)
        self._replicas = replicas
        self._clock = clock
        self._has_stream = False

    async def record(self, owner: Owner, action: Action, names: Sequence[str], by: str) -> None:
        """Record a change that was made; `by` is who asked for it.

        The change is done: that its event cannot be stored must not make it look undone.
        """
        listed = ", ".join(names)
        text = f"secrets of {owner.what}: {action} {listed} by {by}"
        _log.info("%s", text, extra={"nca_id": owner.nca_id})
        event = Event(
            at=self._clock(),
            kind=KIND,
            version_id=owner.event_id,
            text=text[:4096],
            function_name=owner.function_name,
            data={"action": action, "names": listed, "by": by},
        )
        try:
            if not self._has_stream:
                await self._jetstream.ensure_stream(event_stream_config(self._replicas))
                self._has_stream = True
            await self._jetstream.publish(event_subject(owner.event_id), event.to_json())
        except BrokerError as error:
            _log.warning("the event of this change is not stored: %s", error)
