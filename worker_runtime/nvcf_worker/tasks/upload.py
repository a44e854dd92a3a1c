"""Sending a task's results away."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from nvcf_worker.errors import WorkerError
from nvcf_worker.process.backoff import Backoff
from nvcf_worker.tasks import archive

log = logging.getLogger("nvcf_worker")

ATTEMPTS = 6
BACKOFF = Backoff(first=0.5, limit=15.0)
STALL_SECONDS = 120.0
_PASSING = frozenset((408, 425, 429))


class UploadFailed(WorkerError):
    """The results could not be sent."""

    exit_code = 1
    category = "upload-failed"


async def upload(folder: Path, url: str) -> int:
    """PUT everything below `folder` as one zip file with a Content-Length; returns its bytes.

    Passing troubles are tried again. Raises UploadFailed.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=STALL_SECONDS)
    problem = ""
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for attempt in range(ATTEMPTS):
            if attempt:
                log.warning("the results could not be sent (%s); trying again", problem)
                await asyncio.sleep(BACKOFF.delay(attempt - 1, random.random()))  # noqa: S311 - jitter
            try:
                files = await asyncio.to_thread(archive.files_of, folder)
                size = await asyncio.to_thread(archive.length, folder, files)
                status = await _put(session, url, folder, files, size)
            except (aiohttp.ClientError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if status < 300:
                log.info("sent %d results (%d bytes)", len(files), size)
                return size
            problem = f"the server answered {status}"
            if status < 500 and status not in _PASSING:
                raise UploadFailed(f"the results could not be sent: {problem}")
    raise UploadFailed(f"the results could not be sent after {ATTEMPTS} attempts: {problem}")


async def _put(
    session: aiohttp.ClientSession, url: str, folder: Path, files: list[tuple[Path, int]], size: int
) -> int:
    headers = {"Content-Type": "application/zip", "Content-Length": str(size)}
    async with session.put(url, data=_read(folder, files), headers=headers) as response:
        return response.status


async def _read(folder: Path, files: list[tuple[Path, int]]) -> AsyncIterator[bytes]:
    chunks = archive.chunks(folder, files)
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
