"""Downloads files: resumed after a broken connection, checked, and in place only when complete."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import aiohttp

from nvcf_worker.fetch.artifacts import Artifact
from nvcf_worker.fetch.client import Client, FetchError, check_status
from nvcf_worker.fetch.sources import RemoteFile, Sources

log = logging.getLogger("nvcf_worker")

PARALLEL = 4
TRIES = 10
"""Tries in a row that bring nothing new."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_PROGRESS_SECONDS = 10.0
_PIECE = 4 * 2**20
# Kept free on the disk.
_RESERVE = 64 * 2**20
_NOT_SATISFIABLE = 416


@dataclass
class Budget:
    """Bytes that all files together may have, and those that have come. None: no limit but the disk's."""

    most: int | None = None
    taken: int = 0

    def take(self, count: int) -> None:
        """Count bytes that have come. Raises FetchError above the limit."""
        self.taken += count
        if self.most is not None and self.taken > self.most:
            raise FetchError(f"models and resources have more than the allowed {self.most} bytes")

    def check(self, count: int, folder: Path) -> None:
        """Raise FetchError if so many more bytes have no room."""
        if self.most is not None and self.taken + count > self.most:
            raise FetchError(f"models and resources have more than the allowed {self.most} bytes")
        free = shutil.disk_usage(folder).free - _RESERVE
        if count > free:
            raise FetchError(f"a file of {count} bytes, but only {max(0, free)} are free in {folder}")


@dataclass
class _Progress:
    label: str
    total: int | None = None
    have: int = 0
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def add(self, count: int) -> None:
        self.have += count
        now = time.monotonic()
        if now - self.said >= _PROGRESS_SECONDS:
            self.said = now
            whole = f" of {self.total / 2**20:.0f}" if self.total is not None else ""
            speed = self.have / 2**20 / max(now - self.began, 0.001)
            log.info("%s: %.0f%s MiB, %.1f MiB/s", self.label, self.have / 2**20, whole, speed)


@dataclass
class _State:
    """Entity tag of a partial file: a rest with the same one belongs to it."""

    tag: str = ""


class Downloader:
    """Downloads artifacts below a folder: `models/NAME/…`, `resources/NAME/…`."""

    def __init__(
        self, client: Client, sources: Sources, to: Path, budget: Budget, pause: float = _FIRST_PAUSE
    ) -> None:
        self._client = client
        self._sources = sources
        self._to = to
        self._budget = budget
        self._pause = pause
        self._gate = asyncio.Semaphore(PARALLEL)

    async def fetch(self, artifacts: Sequence[Artifact]) -> None:
        """Download all artifacts. Raises FetchError for the first one that fails for good."""
        try:
            async with asyncio.TaskGroup() as group:
                for artifact in artifacts:
                    group.create_task(self._artifact(artifact))
        except* FetchError as errors:
            raise _first(errors) from None

    async def _artifact(self, artifact: Artifact) -> None:
        began, progress = time.monotonic(), _Progress(artifact.label)
        files = await self._listed(artifact)
        sizes = [each.size for each in files]
        progress.total = sum(size for size in sizes if size is not None) if None not in sizes else None
        folder = self._to / artifact.folder / artifact.name
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        async with asyncio.TaskGroup() as group:
            for file in files:
                group.create_task(self._file(artifact, file, folder, progress))
        seconds = time.monotonic() - began
        log.info("%s: %d files, %d bytes in %.1f s", artifact.label, len(files), progress.have, seconds)

    async def _listed(self, artifact: Artifact) -> list[RemoteFile]:
        for failures in range(1, TRIES + 1):
            try:
                return await self._sources.files(artifact)
            except FetchError as error:
                if not error.retry or failures == TRIES:
                    raise FetchError(f"cannot fetch {artifact.label}: {error}") from error
                await self._wait(artifact, failures, error)
        raise AssertionError("the last try returns or raises")

    async def _file(self, artifact: Artifact, file: RemoteFile, folder: Path, progress: _Progress) -> None:
        target = folder / file.path
        marker = target.with_name(f".{target.name}.unpacked")
        async with self._gate:
            if await asyncio.to_thread(lambda: (marker if file.archive else target).exists()):
                return
            await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
            try:
                part = await self._complete(artifact, file, target, progress)
                if file.archive:
                    await asyncio.to_thread(_unpack, part, folder, self._budget)
                    await asyncio.to_thread(marker.touch)
                    await asyncio.to_thread(part.unlink)
                else:
                    await asyncio.to_thread(os.replace, part, target)
            except FetchError as error:
                raise FetchError(f"cannot fetch {artifact.label}: {error}") from error
            except OSError as error:
                raise FetchError(f"cannot write {target}: {error.strerror or error}") from error

    async def _complete(
        self, artifact: Artifact, file: RemoteFile, target: Path, progress: _Progress
    ) -> Path:
        """Return the partial file once it has all bytes and the right checksum."""
        part = target.with_name(f".{target.name}.part")
        if file.local is not None:
            size = (await asyncio.to_thread(file.local.stat)).st_size
            await asyncio.to_thread(self._budget.check, size, target.parent)
            await asyncio.to_thread(shutil.copyfile, file.local, part)
            self._budget.take(size)
            progress.add(size)
            await _verify(part, file)
            return part
        if file.sha256 is None:
            # Nothing would show that the rest is of another file.
            await asyncio.to_thread(part.unlink, missing_ok=True)
        failures, wrong, state = 0, 0, _State()
        while True:
            before = await asyncio.to_thread(_size, part)
            try:
                await self._try(file, part, state, progress)
                await _verify(part, file)
                return part
            except _Wrong as error:
                await asyncio.to_thread(part.unlink, missing_ok=True)
                wrong += 1
                if wrong > 1:
                    raise FetchError(str(error)) from error
            except FetchError as error:
                if not error.retry:
                    raise
                failures = 1 if await asyncio.to_thread(_size, part) > before else failures + 1
                if failures >= TRIES:
                    raise
                await self._wait(artifact, failures, error)
            except (aiohttp.ClientError, TimeoutError) as error:
                failures += 1
                if failures >= TRIES:
                    raise FetchError(str(error) or type(error).__name__) from error
                await self._wait(artifact, failures, error)

    async def _wait(self, artifact: Artifact, failures: int, error: Exception) -> None:
        pause = min(_LONGEST_PAUSE, self._pause * 2.0 ** (failures - 1))
        log.warning("%s: %s; trying again in %.1f s", artifact.label, error, pause)
        await asyncio.sleep(pause)

    async def _try(self, file: RemoteFile, part: Path, state: _State, progress: _Progress) -> None:
        """Bring what is missing of a file."""
        have = await asyncio.to_thread(_size, part)
        headers = dict(file.headers())
        if have:
            headers["Range"] = f"bytes={have}-"
            if state.tag:
                headers["If-Range"] = state.tag
        async with self._client.get(file.url, headers) as response:
            if response.status == 401 and file.renew is not None:
                await file.renew()
                raise FetchError("the registry's token has expired", retry=True)
            if response.status == _NOT_SATISFIABLE and have:
                if file.size in (None, have):
                    return
                raise _Wrong("the file has another size than before")
            check_status(response.status)
            if response.status == 200:
                have = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise _Wrong("the server sent another part than asked for")
            tag = response.headers.get("ETag", "")
            state.tag = "" if tag.startswith("W/") else tag
            left = response.content_length
            if left is not None:
                await asyncio.to_thread(self._budget.check, left, part.parent)
                progress.total = progress.total or have + left
            with await asyncio.to_thread(part.open, "r+b" if have else "wb") as stream:
                await self._write(response, stream, have, progress)

    async def _write(
        self, response: aiohttp.ClientResponse, stream: IO[bytes], have: int, progress: _Progress
    ) -> None:
        stream.seek(have)
        stream.truncate()
        buffer = bytearray()
        try:
            async for piece in response.content.iter_any():
                buffer += piece
                if len(buffer) >= _PIECE:
                    await self._flush(stream, buffer, progress)
        finally:
            # What came before a break is kept.
            await self._flush(stream, buffer, progress)

    async def _flush(self, stream: IO[bytes], buffer: bytearray, progress: _Progress) -> None:
        count = len(buffer)
        await asyncio.to_thread(stream.write, bytes(buffer))
        buffer.clear()
        self._budget.take(count)
        progress.add(count)


class _Wrong(FetchError):
    """What is there is not the beginning of the file."""


async def _verify(part: Path, file: RemoteFile) -> None:
    size = await asyncio.to_thread(_size, part)
    if file.size is not None and size != file.size:
        raise FetchError(f"{size} bytes have come, {file.size} were announced", retry=True)
    if file.sha256 is not None and await asyncio.to_thread(_digest, part) != file.sha256:
        raise _Wrong("the checksum is wrong: the file is not the one that was meant")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _digest(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpack(archive: Path, folder: Path, budget: Budget) -> None:
    """Unpack an archive; nothing in it gets outside of the folder. Blocking."""
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                budget.check(member.size, folder)
                budget.take(member.size)
                opened.extract(member, folder, filter="data")
    except tarfile.TarError as error:
        raise FetchError(f"an archive cannot be unpacked: {error}") from error


def _first(group: BaseExceptionGroup[FetchError]) -> FetchError:
    for each in group.exceptions:
        return each if isinstance(each, FetchError) else _first(each)
    raise AssertionError("a group has an exception")
