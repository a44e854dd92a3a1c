"""What keeps the platform from serving, and since when: the answer of `GET /health/ready`.

A probe writes to the store of the control plane, whose room tenants' data cannot take. nats-server answers
nothing at all when it cannot write, and keeps a write error until it is restarted, so only a write shows
whether the store works.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import BrokerError, BrokerUnavailableError, JetStreamError, NoListenerError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_gateway.config import GatewayConfig
from nvcf_proto.compute import LEASE_STREAM, LEASE_SUBJECT
from nvcf_proto.streams import PROBE_STREAM, PROBE_SUBJECT, probe_stream_config

_log = logging.getLogger(__name__)

PROBE_SECONDS = 2.0
PROBE_TIMEOUT = 2.0
PROBE_BYTES = 8 * 1024
"""More than the rest of a file's last block, which a full disk still takes."""
PATIENCE = 10.0
"""How long calls wait for a broker that is away before new ones are refused at once, seconds."""

BROKER = "broker"
STORE = "store"
AUTOSCALER = "autoscaler"
_AWAY = "the broker is not reachable"
_SILENT = "the broker's store does not answer"
_READ_ONLY = "the broker's store takes no writes: its disk is full, or it has a write error"
_NO_LEADER = "no autoscaler leads: instances are neither started nor ended"


@dataclass(frozen=True)
class Trouble:
    """Something that does not work. `since` is Unix time; `serious`: calls cannot be served."""

    part: str
    detail: str
    since: float
    serious: bool
    patience: float = 0.0

    def text(self) -> str:
        """Return cause and beginning in one line."""
        return f"{self.detail} (since {_timestamp(self.since)})"


class Readiness:
    """What does not work at the moment. `clock` is Unix time in seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._troubles: dict[str, Trouble] = {}
        self.stopping = False
        """Whether the process ends soon: calls are still served, new ones should go to another gateway."""

    def report(self, part: str, detail: str | None, *, serious: bool = True, patience: float = 0.0) -> None:
        """Note what is wrong with a part; None: nothing is."""
        known = self._troubles.get(part)
        if detail is None:
            if self._troubles.pop(part, None) is not None:
                _log.warning("%s: works again", part)
            return
        if known is None:
            _log.error("%s: %s", part, detail)
        since = self._clock() if known is None else known.since
        self._troubles[part] = Trouble(part, detail, since, serious, patience)

    def refusal(self) -> str | None:
        """Return why a call that needs the store is refused at once; None if it may be tried."""
        if not self._troubles:
            return None
        for trouble in self._troubles.values():
            if trouble.serious and self._clock() - trouble.since >= trouble.patience:
                return trouble.text()
        return None

    @property
    def ready(self) -> bool:
        """Whether calls can be served."""
        return not self.stopping and not any(trouble.serious for trouble in self._troubles.values())

    def document(self) -> dict[str, Any]:
        """Return the body of `GET /health/ready`."""
        troubles = [
            {"part": each.part, "detail": each.detail, "since": _timestamp(each.since)}
            for each in self._troubles.values()
        ]
        if self.stopping:
            return {"status": "stopping", "troubles": troubles}
        status = ("degraded" if troubles else "ok") if self.ready else "unavailable"
        return {"status": status, "troubles": troubles}


class Probe:
    """Finds out what works, every `PROBE_SECONDS`."""

    def __init__(
        self, readiness: Readiness, client: BrokerClient, requests: Requester, config: GatewayConfig
    ) -> None:
        self._readiness = readiness
        self._client = client
        self._jetstream = JetStream(requests, PROBE_TIMEOUT)
        self._replicas = config.replicas
        self._lease: int | None = None

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(PROBE_SECONDS)

    async def check(self) -> None:
        """Probe once."""
        broker, store = await self._writes()
        self._readiness.report(BROKER, broker, patience=PATIENCE)
        if broker is not None:
            return
        self._readiness.report(STORE, store)
        if store is None:
            leads = await self._leads()
            self._readiness.report(AUTOSCALER, None if leads else _NO_LEADER, serious=False)

    async def _writes(self) -> tuple[str | None, str | None]:
        """Write to the store. Return what is wrong with the broker, and what with its store."""
        if not self._client.is_connected:
            return _AWAY, None
        try:
            try:
                await self._jetstream.publish(PROBE_SUBJECT, bytes(PROBE_BYTES))
            except NoListenerError:
                await self._jetstream.create_stream(probe_stream_config(replicas=self._replicas))
        except JetStreamError as error:
            return None, f"the broker's store takes no writes: {error.description}"
        except BrokerUnavailableError:
            return await self._reads()
        return None, None

    async def _reads(self) -> tuple[str | None, str | None]:
        """Tell a store that takes no writes from a broker that answers nothing."""
        try:
            await self._jetstream.stream_info(PROBE_STREAM)
        except BrokerError:
            return _SILENT if self._client.is_connected else _AWAY, None
        return None, _READ_ONLY

    async def _leads(self) -> bool:
        """Return whether the autoscaler's lease is renewed; it has to change between two probes."""
        try:
            found = await self._jetstream.direct_get(LEASE_STREAM, last_by_subj=LEASE_SUBJECT)
        except BrokerError:
            found = None
        sequence = int((found.headers or {})["Nats-Sequence"]) if found is not None else None
        before, self._lease = self._lease, sequence
        return sequence is not None and sequence != before


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
