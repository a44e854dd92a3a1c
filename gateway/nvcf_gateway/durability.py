"""What a caller is told is kept is on disk before it is told.

nats-server acknowledges what it has written to its files, and waits for the disk every two minutes, or with
`sync_interval: always` after each message: that costs calls which promise nothing as much as those that do.
A gateway beside its broker therefore waits for the disk itself, once for all promises of the moment.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path

from nvcf_broker.errors import BrokerUnavailableError
from nvcf_gateway.background import BackgroundTasks

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def sync_file_system(folder: Path) -> None:
    """Wait until everything written to the folder's file system is on its disk. Raises OSError."""
    if _LIBC is None:
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _LIBC.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


class Durability:
    """Waits until the disk has what the broker has acknowledged. Without a folder that is the broker's."""

    def __init__(
        self,
        folder: Path | None,
        background: BackgroundTasks,
        sync: Callable[[Path], None] = sync_file_system,
    ) -> None:
        self._folder = folder
        self._background = background
        self._sync = sync
        self._waiting: list[asyncio.Future[None]] = []
        self._running = False

    async def commit(self) -> None:
        """Wait for a sync that begins after this call; all who wait share it. Raises BrokerError."""
        if self._folder is None:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        if not self._running:
            self._running = True
            self._background.spawn(self._run(self._folder), "wait for the disk")
        await done

    async def _run(self, folder: Path) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                error: BrokerUnavailableError | None = None
                try:
                    await asyncio.to_thread(self._sync, folder)
                except OSError as failure:
                    error = BrokerUnavailableError(f"the disk of the broker's store fails: {failure}")
                for done in batch:
                    if not done.done():
                        done.set_exception(error) if error is not None else done.set_result(None)
        finally:
            self._running = False
            for done in self._waiting:
                done.cancel()
