"""Requeues the requests that an ended instance held, as its agent reports them (protocol.md, section 5.7).

Without this, they are delivered again only after the consumer's ack wait.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import nats.errors
from nats.aio.client import Client

from nvcf_broker.connection import describe_error
from nvcf_proto.journal import held_by
from nvcf_proto.models import Instance
from nvcf_proto.subjects import started_subject

_log = logging.getLogger(__name__)

_NAK = b"-NAK"
_FLUSH_SECONDS = 5


class Requeuer:
    """Naks requests. `client` is in the broker account of the queues."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def requeue(self, instance: Instance, held: Iterable[str]) -> None:
        """Nak those of the requests `held` that belong to the instance's version.

        Call it once, when the instance has ended. There is no second attempt, since the broker delivers them
        again by itself, only later.
        """
        subjects = [each for each in dict.fromkeys(held) if held_by(each, instance.version_id)]
        try:
            for subject in subjects:
                # It may be what killed the instance, so it counts as an attempt.
                if (note := started_subject(subject)) is not None:
                    await self._client.publish(note, b"")
                await self._client.publish(subject, _NAK)
            if subjects:
                await self._client.flush(_FLUSH_SECONDS)
                _log.warning("instance %s: requeued %d requests that it held", instance.id, len(subjects))
        except (nats.errors.Error, OSError, TimeoutError) as error:
            reason = describe_error(error)
            _log.warning("instance %s: its requests are delivered again later: %s", instance.id, reason)
