"""Which files of a task are uploaded, and when: strategy UPLOAD (protocol.md, section 12.6)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from nvcf_proto.environment import NVCT_RESULT_HANDLING_STRATEGY, RESULTS_LOCATION
from nvcf_worker.errors import ConfigurationError
from nvcf_worker.fetch.s3 import S3Settings, parse_s3
from nvcf_worker.function.secrets import secrets
from nvcf_worker.tasks.checkpoints import FOLDER as CHECKPOINTS
from nvcf_worker.tasks.s3_store import S3Store, StoreError, first_error
from nvcf_worker.tasks.settings import TaskSettings
from nvcf_worker.tasks.upload import list_files

log = logging.getLogger("nvcf_worker")

MOST_FILES = 10_000
AT_ONCE = 4
_MOST_WAITING = 1000

Mark = tuple[int, int]
"""Size and time of a file, by which it is known to have changed."""


class ResultUploads:
    """Uploads the folder of each result that is reported, and everything that is left at the end.

    Not uploaded are checkpoints, the progress file, hidden files and folders at the top, and links.
    """

    def __init__(self, folder: Path, progress_file: Path | None, store: S3Store) -> None:
        self._folder = folder
        self._progress_file = progress_file
        self._store = store
        self._uploaded: dict[str, Mark] = {}
        self._waiting: dict[str, None] = {}
        self._reported = asyncio.Event()

    @classmethod
    def of(cls, environ: Mapping[str, str], settings: TaskSettings) -> ResultUploads | None:
        """Return the uploads that the environment asks for. Raises ConfigurationError.

        The key of the store comes from the task's secrets, else the environment, by the names that AWS uses.
        """
        location = environ.get(RESULTS_LOCATION, "").strip()
        if environ.get(NVCT_RESULT_HANDLING_STRATEGY) != "UPLOAD" or not location.startswith("s3://"):
            return None
        bucket, prefix = parse_s3(location)
        if not bucket or settings.results_dir is None:
            raise ConfigurationError(f"{RESULTS_LOCATION} names no bucket, or the task has no results folder")
        own = {name: secrets[name] for name in secrets if name.startswith("AWS_")}
        known = S3Settings.of({**environ, **own}, None)
        state = settings.results_dir / ".uploads"
        store = S3Store(known, bucket, f"{prefix.rstrip('/')}/{settings.id}", state)
        return cls(settings.results_dir, settings.progress_file, store)

    def report(self, name: str) -> None:
        """Have the folder of a result uploaded soon."""
        if len(self._waiting) < _MOST_WAITING:  # the rest is uploaded at the end
            self._waiting[name] = None
        self._reported.set()

    async def run(self) -> None:
        """Upload what is reported, until cancelled. What fails is uploaded at the end."""
        async with self._store:
            while True:
                await self._reported.wait()
                self._reported.clear()
                while self._waiting:
                    name = next(iter(self._waiting))
                    del self._waiting[name]
                    try:
                        await self._upload(self._folder / name)
                    except (StoreError, OSError) as error:
                        log.warning("the result %s is uploaded at the end: %s", name, error)

    async def finish(self) -> int:
        """Upload everything that is left; return how many files are uploaded in all. Raises StoreError."""
        async with self._store:
            try:
                await self._upload(self._folder)
            except OSError as error:
                raise StoreError(f"the results cannot be read: {error}") from error
        return len(self._uploaded)

    async def _upload(self, folder: Path) -> None:
        files = await asyncio.to_thread(self._changed, folder)
        if len(files) + len(self._uploaded) > MOST_FILES:
            raise StoreError(f"the results are more than {MOST_FILES} files: put them into archives")
        left = iter(files)

        async def upload_some() -> None:
            for path, name, mark in left:
                await self._store.put(path, name)
                self._uploaded[name] = mark

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(upload_some())
        except* (StoreError, OSError) as errors:
            raise first_error(errors) from None

    def _changed(self, folder: Path) -> list[tuple[Path, str, Mark]]:
        """Return the files below a folder that are new or have changed. Blocking."""
        found = []
        for path, size in list_files(folder):
            name = path.relative_to(self._folder)
            if path == self._progress_file or name.parts[0] == CHECKPOINTS or name.parts[0].startswith("."):
                continue
            mark = (size, path.lstat().st_mtime_ns)
            if self._uploaded.get(name.as_posix()) != mark:
                found.append((path, name.as_posix(), mark))
        return found
