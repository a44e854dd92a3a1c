"""A local broker whose store cannot be written: notice it, and restart the broker when there is room again.

nats-server keeps a write error for each stream until it is restarted, and logs each message that it could not
store. Source: nats-server 2.15.1, filestore.go (`setWriteErr`) and stream.go ("failed to store a msg").
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from nvcf_broker.process import RestartPolicy

_SIGNS = (b"failed to store a msg", b"critical write error", b"will be disabled", b"disabling jetstream")
_ROOM_BYTES = 4 * 1024 * 1024
_LOOK_SECONDS = 1.0


def write_error(output: bytes) -> str | None:
    """Return the line of nats-server's output that reports a failed write, None without one."""
    for line in output.splitlines():
        if any(sign in line.lower() for sign in _SIGNS):
            return line.decode(errors="replace")
    return None


def has_room(folder: Path) -> bool:
    """Return whether a few MiB can be written to the folder's file system."""
    probe = folder / ".room"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_ROOM_BYTES))
            file.flush()
            os.fsync(file.fileno())
        return True
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


class StoreWatch:
    """Restarts a broker that has a write error once `folder` can be written."""

    def __init__(
        self,
        folder: Path,
        restart: Callable[[], Awaitable[None]],
        say: Callable[[str], None],
        policy: RestartPolicy | None = None,
    ) -> None:
        self._folder = folder
        self._restart = restart
        self._say = say
        self._policy = policy or RestartPolicy()
        self._failed = asyncio.Event()
        self._line = ""

    def feed(self, output: bytes) -> None:
        """Take some of the broker's output."""
        if not self._failed.is_set() and (line := write_error(output)) is not None:
            self._line = line
            self._failed.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        failures, restarted = 0, float("-inf")
        while True:
            await self._failed.wait()
            self._say(
                f"the broker cannot write to its store, calls get 503 until there is room in {self._folder}: "
                f"{self._line.rpartition(': ')[2]}"
            )
            failures = self._policy.failures_after(failures, time.monotonic() - restarted)
            pause = self._policy.delay(failures)
            while True:
                await asyncio.sleep(pause)
                if await asyncio.to_thread(has_room, self._folder):
                    break
                pause = _LOOK_SECONDS
            self._say("there is room again: restarting the broker, which keeps its write error until then")
            await self._restart()
            restarted = time.monotonic()
            self._failed.clear()
