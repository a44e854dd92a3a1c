"""Deliveries that workers hand back without having started them (protocol.md, section 2.12).

The broker counts every delivery, and no longer delivers a message after a few. But a worker that drains, that
is unhealthy or that has no slot only hands back what it cannot take. So each replica counts the naks, which
the broker announces, and takes off those of deliveries that had been started: workers and agents note them.
"""

from __future__ import annotations

import json
from collections import OrderedDict

from nats.aio.msg import Msg

from nvcf_broker.jetstream import StoredMessage
from nvcf_proto import headers as names
from nvcf_proto.streams import DEFAULT_MAX_DELIVER

NAK_SUBJECT = "$JS.EVENT.ADVISORY.CONSUMER.MSG_NAKED.*.*"
MAX_COUNTED = 100_000
"""Messages whose hand-backs are counted; the oldest is forgotten."""
MANY_DELIVERIES = 200
PAUSE = 0.1
"""Seconds before a request with so many deliveries is queued again: some worker does nothing but naks."""


class HandBacks:
    """Counts hand-backs since `since` (Unix time), by stream and sequence."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._counts: OrderedDict[tuple[str, int], int] = OrderedDict()

    async def on_nak(self, message: Msg) -> None:
        """Count a nak that the broker announces."""
        try:
            members = json.loads(message.data)
            stream, sequence = str(members["stream"]), int(members["stream_seq"])
        except (ValueError, KeyError, TypeError):
            return
        if stream.startswith("rq_"):
            self._add(stream, sequence, 1)

    async def on_started(self, message: Msg) -> None:
        """Take off a nak whose delivery had been started."""
        _, _, stream, _, _, sequence = message.subject.split(".")
        if sequence.isascii() and sequence.isdigit():
            self._add(stream, int(sequence), -1)

    def _add(self, stream: str, sequence: int, number: int) -> None:
        key = (stream, sequence)
        self._counts[key] = self._counts.get(key, 0) + number
        if len(self._counts) > MAX_COUNTED:
            self._counts.popitem(last=False)

    def attempts(self, stream: str, message: StoredMessage, deliveries: int) -> int:
        """Return how many deliveries of a message that is no longer delivered had been started."""
        before = int(message.headers.get(names.ATTEMPTS, "0"))
        if message.stored_at < self._since:
            # What became of the first deliveries is not known here: it gets another round.
            return before
        return before + max(0, deliveries - self._counts.pop((stream, message.sequence), 0))


def again(message: StoredMessage, attempts: int, deliveries: int) -> tuple[dict[str, str], float] | None:
    """Return the headers with which a message is queued again, and after how many seconds.

    None if as many deliveries had been started as a request may have.
    """
    if attempts >= DEFAULT_MAX_DELIVER:
        return None
    before = int(message.headers.get(names.DELIVERIES, "0"))
    headers = {names.ATTEMPTS: str(attempts), names.DELIVERIES: str(before + deliveries)}
    return headers, 0.0 if before < MANY_DELIVERIES else PAUSE
