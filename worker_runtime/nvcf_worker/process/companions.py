"""What runs beside a worker: a server or application that must be up first, and notices of termination."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Protocol

log = logging.getLogger("nvcf_worker")

TERMINATION_NOTICE_FILE = "NVCF_TERMINATION_NOTICE_FILE"
"""[ext] The worker drains, as on SIGTERM, once a file of this name exists. Default: none."""

NOTICE_INTERVAL = 0.5


class Admission(Protocol):
    """The worker's door."""

    def pause(self) -> None:
        """Let no further request in; the worker is not ready."""

    def resume(self) -> None:
        """Let requests in again."""


class Companion(Protocol):
    """What a worker's function lives in, e.g. a server process."""

    async def start(self) -> None:
        """Return when requests can be served. Raises WorkerError when that will not be."""

    async def watch(self, admission: Admission) -> None:
        """Look after it while requests are served, until cancelled. Raises WorkerError when it is lost."""

    async def stop(self) -> None:
        """End it; called once, after the last request, however it went before."""


class Served(Admission, Protocol):
    """What `accompany` needs of a worker."""

    async def run(self) -> None:
        """Serve until `stop`."""

    def stop(self, grace_seconds: float | None = None) -> None:
        """Leave; with 0 the requests in work are handed back."""


async def accompany(worker: Served, companion: Companion) -> None:
    """Run both: requests are taken once the companion has started, and handed back when it is lost.

    Raises the WorkerError of whichever ended first.
    """
    worker.pause()
    serving = asyncio.create_task(worker.run())
    tending = asyncio.create_task(_tend(worker, companion))
    try:
        await asyncio.wait((serving, tending), return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            worker.stop(0)
        await serving
        if tending.done():
            tending.result()
    finally:
        await cancelled(serving, tending)
        await companion.stop()


async def _tend(worker: Served, companion: Companion) -> None:
    await companion.start()
    worker.resume()
    await companion.watch(worker)


async def cancelled(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait for their end; what they raise has been told or does not matter any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def beside(work: Awaitable[None], watchers: Iterable[Awaitable[None]]) -> None:
    """Await `work` with `watchers` running until it is done. A watcher that ends early is no matter."""
    running = [asyncio.ensure_future(watcher) for watcher in watchers]
    try:
        await work
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def watch_for_notice(path: Path, leave: Callable[[str], None]) -> None:
    """Call `leave` once with a reason as soon as there is a file at `path`.

    Looked for twice a second: such a file is written by another container into a shared volume, where no
    file system event would arrive.
    """
    while True:
        if await asyncio.to_thread(path.exists):
            break
        await asyncio.sleep(NOTICE_INTERVAL)
    log.info("notice of termination: %s is there", path)
    leave(f"notice of termination in {path}")
