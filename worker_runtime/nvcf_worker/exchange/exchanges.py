"""The table of exchanges: finds the callers of a request by its id."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvcf_worker.exchange.exchange import Exchange
from nvcf_worker.exchange.files import PROGRESS_FILE
from nvcf_worker.exchange.response_delivery import Backlog
from nvcf_worker.exchange.transport import Transport
from nvcf_worker.function.cancellation import CancelScope
from nvcf_worker.message import ReplyAddress, Work

log = logging.getLogger("nvcf_worker")

PROGRESS_INTERVAL = 0.5


class Exchanges:
    """The open exchanges of one worker. `compatibility`: not V3_BACKWARDS_COMPATIBILITY_DISABLED."""

    def __init__(self, transport: Transport, *, compatibility: bool = True) -> None:
        self.compatibility = compatibility
        self._transport = transport
        self._backlog = Backlog()
        self._open: dict[str, Exchange] = {}

    def open(self, work: Work, scope: CancelScope) -> Exchange:
        """Open the exchange of a request; `close` has to follow."""
        exchange = self._open[work.request_id] = Exchange(work, scope, self._transport, self._backlog)
        return exchange

    async def close(self, exchange: Exchange) -> None:
        """Close an exchange: answer late polls, delete the request's files."""
        try:
            await exchange.close()
        finally:
            self._open.pop(exchange.work.request_id, None)

    def is_open(self, request_id: str) -> bool:
        """Return whether a request has an exchange that takes polls."""
        exchange = self._open.get(request_id)
        return exchange is not None and not exchange.closed

    def polled(self, request_id: str, address: ReplyAddress, due: float, poll: Work | None = None) -> None:
        """Add a poll to the open exchange of a request."""
        self._open[request_id].polled(address, due, poll)

    def tick(self, now: float) -> None:
        """Send 202 to callers whose poll time has expired. `now` is Unix time."""
        for exchange in tuple(self._open.values()):
            exchange.tick(now)

    async def listen_again(self) -> None:
        """Subscribe to polls on a new broker connection."""
        await asyncio.gather(*(exchange.listen_again() for exchange in tuple(self._open.values())))

    def progress(self, request_id: str, content: bytes) -> None:
        """Send the content of a changed progress file to those who wait for its request."""
        exchange = self._open.get(request_id)
        if exchange is None or not content:
            return
        try:
            percent, partial = read_progress(content)
        except ValueError as error:
            # A writer that does not replace the file in one step is seen in the middle of it.
            log.debug("progress file of %s: %s", request_id, error)
            return
        exchange.progress(percent, partial)

    async def watch_progress_files(self) -> None:
        """Look at the progress files of all requests twice a second, until cancelled."""
        seen: dict[str, tuple[int, int]] = {}
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL)
            paths = {
                request_id: exchange.files.output_path / PROGRESS_FILE
                for request_id, exchange in self._open.items()
                if exchange.files is not None and exchange.files.output_made
            }
            if not paths:
                seen.clear()
                continue
            changes, seen = await asyncio.to_thread(changed, paths, seen)
            for request_id, content in changes.items():
                self.progress(request_id, content)


def changed(
    paths: Mapping[str, Path], seen: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, bytes], dict[str, tuple[int, int]]]:
    """Return the contents of the files that changed since `seen`, and what has been seen now. Blocks."""
    contents: dict[str, bytes] = {}
    now: dict[str, tuple[int, int]] = {}
    for name, path in paths.items():
        try:
            status = path.stat()
            mark = (status.st_mtime_ns, status.st_size)
            if seen.get(name) != mark:
                contents[name] = path.read_bytes()
        except OSError:
            # Not there (yet), or just being replaced.
            continue
        now[name] = mark
    return contents, now


def read_progress(text: bytes) -> tuple[float, Any]:
    """Return percent and partial response of a progress file (protocol.md, section 5). Raises ValueError."""
    try:
        members = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(members, dict):
        raise ValueError("it is no JSON object")
    percent = members.get("progress", 0)
    if isinstance(percent, bool) or not isinstance(percent, int | float):
        raise ValueError(f"progress is {percent!r}; it must be a number from 0 to 100")
    try:
        return float(percent), members.get("partialResponse")
    except OverflowError as error:
        raise ValueError("progress must be a number from 0 to 100") from error
