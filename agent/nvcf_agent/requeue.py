"""Requeues the requests that an ended instance held.

Without this, they are delivered again only after the consumer's ack wait.
"""

import asyncio
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import nats.errors
from nats.aio.client import Client

from nvcf_proto.journal import FILE_NAME, Orphan, read_orphans
from nvcf_proto.subjects import requeue_subject, started_subject

_log = logging.getLogger(__name__)

_NAK = b"-NAK"
# Far more than a worker's slots need. The function can write the file.
_LARGEST = 4 * 1024 * 1024
_FLUSH_SECONDS = 5


class Requeuer:
    """Requeues requests of ended instances by their journals in `instances/ID/shared`."""

    def __init__(self, client: Client, instances: Path, wall: Callable[[], float] = time.time) -> None:
        self._client = client
        self._instances = instances
        self._wall = wall

    async def requeue(self, instance_id: str, version_id: str) -> int:
        """Nak the requests of its version that this instance still holds, and return how many.

        Call it when nothing of the instance runs. There is no second attempt, since the broker delivers them
        again by itself, only later.
        """
        path = self._instances / instance_id / "shared" / FILE_NAME
        held = requeueable(await asyncio.to_thread(_read, path), instance_id, version_id, self._wall())
        try:
            for each in held:
                # It may be what killed the instance, so it counts as an attempt.
                if (note := started_subject(each.ack_subject)) is not None:
                    await self._publish(note, b"")
                await self._publish(each.ack_subject, _NAK)
            if held:
                await self._client.flush(_FLUSH_SECONDS)
                _log.warning("instance %s: requeued %d requests that it held", instance_id, len(held))
        except (nats.errors.Error, OSError, TimeoutError) as error:
            _log.warning("instance %s: its requests are delivered again later: %s", instance_id, error)
            return 0
        return len(held)

    async def _publish(self, subject: str, payload: bytes) -> None:
        # Only one of them has a listener: is this the account of the queues, or another one?
        await self._client.publish(subject, payload)
        await self._client.publish(requeue_subject(subject), payload)


def requeueable(journal: bytes, instance_id: str, version_id: str, wall: float) -> list[Orphan]:
    """Return the requests of a journal that may be requeued. Pure.

    The function's own code can write the journal, so only requests of its version count.
    """
    found = read_orphans(journal, instance_id)
    return [each for each in found if each.belongs_to(version_id) and each.still_held(wall)]


def _read(path: Path) -> bytes:
    # The function may have put anything there, for example a link, or a pipe without end.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, _LARGEST, 0) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(descriptor)
