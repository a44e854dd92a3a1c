"""Companions of a worker: a server or application that must run before and beside it; termination notices."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger("nvcf_worker")

TERMINATION_NOTICE_FILE = "NVCF_TERMINATION_NOTICE_FILE"
"""[ext] The worker drains, as on SIGTERM, once a file of this name exists. Default: none."""

NOTICE_INTERVAL = 0.5


class Admission(Protocol):
    """Lets a companion stop and start the intake of requests."""

    def pause(self) -> None:
        """Take no further requests; the worker is not ready."""

    def resume(self) -> None:
        """Take requests again."""


class Companion(Protocol):
    """What a worker's function depends on, e.g. a server process."""

    async def start(self) -> None:
        """Return when requests can be served. Raises WorkerError if that will not happen."""

    async def watch(self, admission: Admission) -> None:
        """Monitor it while requests are served, until cancelled. Raises WorkerError if it is lost."""

    async def stop(self) -> None:
        """End it. Called once, after the last request, also when `start` has failed."""


class Served(Admission, Protocol):
    """The part of a worker that `accompany` uses."""

    async def run(self) -> None:
        """Serve until `stop`."""

    def stop(self, grace_seconds: float | None = None) -> None:
        """Drain; with 0 seconds the requests in flight go back to the queue at once."""


async def accompany(worker: Served, companion: Companion) -> None:
    """Run both: requests are taken once the companion has started, and given back if it is lost.

    Raises the WorkerError of the one that ended first.
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
    """Cancel tasks and wait for their end. Their errors are ignored: they are logged or no longer matter."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def beside(work: Coroutine[Any, Any, None], watchers: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await `work` while `watchers` run. The end of a watcher has no effect."""
    running = [asyncio.create_task(watcher) for watcher in watchers]
    try:
        await work
    finally:
        await cancelled(*running)


async def watch_for_notice(path: Path, leave: Callable[[str], None]) -> None:
    """Call `leave` once, with a reason, as soon as a file exists at `path`.

    The file is polled: another container writes it to a shared volume, where no file system event arrives.
    """
    while True:
        if await asyncio.to_thread(path.exists):
            break
        await asyncio.sleep(NOTICE_INTERVAL)
    log.info("notice of termination: %s exists", path)
    leave(f"notice of termination in {path}")
