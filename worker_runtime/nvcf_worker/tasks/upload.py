"""Send the results of a task as one zip file, made while it is sent: there is no second copy on the disk."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import random
import stat
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import aiohttp

from nvcf_worker.errors import WorkerError
from nvcf_worker.process.durations import Backoff

log = logging.getLogger("nvcf_worker")

ATTEMPTS = 6
BACKOFF = Backoff(first=0.5, limit=15.0)
STALL_SECONDS = 120.0
BLOCK = 1024 * 1024

_TRANSIENT = frozenset((408, 425, 429))

Files = list[tuple[Path, int]]


class UploadFailed(WorkerError):
    """The results could not be sent."""

    exit_code = 1
    category = "upload-failed"


async def upload(folder: Path, url: str) -> int:
    """PUT everything below `folder` as one zip file with a Content-Length; return its size in bytes.

    Transient errors are retried, up to ATTEMPTS requests in all. Raises UploadFailed.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=STALL_SECONDS)
    problem = ""
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for attempt in range(ATTEMPTS):
            if attempt:
                log.warning("the results could not be sent (%s); trying again", problem)
                await asyncio.sleep(BACKOFF.delay(attempt - 1, random.random()))  # noqa: S311 - jitter
            try:
                files = await asyncio.to_thread(list_files, folder)
                size = await asyncio.to_thread(archive_size, folder, files)
                headers = {"Content-Type": "application/zip", "Content-Length": str(size)}
                async with session.put(url, data=_read(folder, files), headers=headers) as response:
                    status = response.status
            except (aiohttp.ClientError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if status < 300:
                log.info("sent %d results (%d bytes)", len(files), size)
                return size
            problem = f"the server responded {status}"
            if status < 500 and status not in _TRANSIENT:
                raise UploadFailed(f"the results could not be sent: {problem}")
    raise UploadFailed(f"the results could not be sent after {ATTEMPTS} attempts: {problem}")


async def _read(folder: Path, files: Files) -> AsyncIterator[bytes]:
    chunks = archive_chunks(folder, files)
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk


# --- the archive


def list_files(folder: Path) -> Files:
    """Return the regular files below `folder` with their sizes, sorted; symbolic links are left out."""
    found = []
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory) / name
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((path, status.st_size))
    return sorted(found)


def archive_chunks(folder: Path, files: Files) -> Iterator[bytes]:
    """Yield the archive. Raises OSError if a file no longer has the size it had when it was listed."""
    for data, path, missing in _archive(folder, files, read=True):
        if missing:
            raise OSError(f"{path} has changed while it was sent")
        if data:
            yield data


def archive_size(folder: Path, files: Files) -> int:
    """Return the size of the archive in bytes. It follows from names and sizes, so no file is read."""
    return sum(len(data) for data, _, _ in _archive(folder, files, read=False))


def _archive(folder: Path, files: Files, *, read: bool) -> Iterator[tuple[bytes, Path, int]]:
    """Yield pieces of the archive, each with its file and how many bytes of that turned out to be missing."""
    sink = _Sink()
    # Stored, not deflated: results are mostly weights and images, and the size must be known in advance.
    with zipfile.ZipFile(cast(BinaryIO, sink), "w", zipfile.ZIP_STORED) as archive:
        for path, size in files:
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            left = size
            large = size >= zipfile.ZIP64_LIMIT // 2
            with (
                archive.open(info, "w", force_zip64=large) as entry,
                path.open("rb") if read else cast(BinaryIO, _Zeros()) as source,
            ):
                while left and (block := source.read(min(BLOCK, left))):
                    left -= len(block)
                    entry.write(block)
                    yield sink.take(), path, 0
            yield sink.take(), path, left
    yield sink.take(), folder, 0


class _Sink(io.RawIOBase):
    """Keeps what zipfile writes until it is taken. Not seekable, so that zipfile only appends."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(cast(bytes, data))
        self._written += view
        return len(view)

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


class _Zeros(io.RawIOBase):
    """An endless file of zeros."""

    def read(self, size: int = -1, /) -> bytes:
        return bytes(size)
