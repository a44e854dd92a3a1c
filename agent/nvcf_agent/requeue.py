"""What an instance held when it was killed goes back to the queue, where none starts again as that instance.

Without it those requests would be delivered again only after the consumer's ack wait.
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

from nvcf_proto.journal import FILE_NAME, Leftover, read_leftovers

_log = logging.getLogger(__name__)

_NAK = b"-NAK"
# Far more than a worker's slots need; the file is the function's to write.
_LARGEST = 4 * 1024 * 1024
_FLUSH_SECONDS = 5


class HandBack:
    """Hands back what ended instances held, out of their journals in `instances/ID/shared`."""

    def __init__(self, client: Client, instances: Path, wall: Callable[[], float] = time.time) -> None:
        self._client = client
        self._instances = instances
        self._wall = wall

    async def of(self, instance_id: str, version_id: str) -> int:
        """Hand back what this instance still holds of its version's requests; how many that was.

        To be called when nothing of the instance runs any more. Not worth a second attempt: the broker
        delivers them again by itself, only later.
        """
        path = self._instances / instance_id / "shared" / FILE_NAME
        held = held_now(await asyncio.to_thread(_read, path), instance_id, version_id, self._wall())
        try:
            for each in held:
                await self._client.publish(each.ack_subject, _NAK)
            if held:
                await self._client.flush(_FLUSH_SECONDS)
                _log.warning("instance %s: handed back %d requests that it held", instance_id, len(held))
        except (nats.errors.Error, OSError, TimeoutError) as error:
            _log.warning("instance %s: what it held is delivered again later: %s", instance_id, error)
            return 0
        return len(held)


def held_now(journal: bytes, instance_id: str, version_id: str, wall: float) -> list[Leftover]:
    """Requests in a journal that may be handed back. Pure.

    The journal is a file that the function's own code can write: only requests of its version count.
    """
    found = read_leftovers(journal, instance_id)
    return [each for each in found if each.belongs_to(version_id) and each.still_held(wall)]


def _read(path: Path) -> bytes:
    # The function may have put anything there: a link, or a pipe that would never end.
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
