"""Which files of a task are uploaded, and when: strategy UPLOAD (protocol.md, section 12.6)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from nvcf_proto.environment import NVCT_FQDN, NVCT_RESULT_HANDLING_STRATEGY, RESULTS_LOCATION
from nvcf_worker.errors import ConfigurationError
from nvcf_worker.fetch.s3 import S3Settings, parse_s3
from nvcf_worker.function.secrets import secrets
from nvcf_worker.tasks.checkpoints import FOLDER as CHECKPOINTS
from nvcf_worker.tasks.platform import TaskPlatform
from nvcf_worker.tasks.platform_store import PlatformStore
from nvcf_worker.tasks.s3_store import S3Store, StoreError, first_error
from nvcf_worker.tasks.settings import TaskSettings
from nvcf_worker.tasks.upload import list_files

log = logging.getLogger("nvcf_worker")

MOST_FILES = 10_000
AT_ONCE = 4
_MOST_WAITING = 1000

Mark = tuple[int, int]
"""Size and time of a file, by which it is known to have changed."""


class ResultStore(Protocol):
    """A place for results; open while it is used as an async context manager."""

    async def __aenter__(self) -> object: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def put(self, path: Path, name: str) -> int:
        """Upload a file under a name; return its size. Raises StoreError, and OSError about the file."""

    async def publish(self) -> None:
        """Have the files found that are uploaded. Raises StoreError."""


class ResultUploads:
    """Uploads the folder of each result that is reported, and everything that is left at the end.

    Not uploaded are checkpoints, the progress file, hidden files and folders at the top, and links.
    """

    def __init__(self, folder: Path, progress_file: Path | None, store: ResultStore) -> None:
        self._folder = folder
        self._progress_file = progress_file
        self._store = store
        self._uploaded: dict[str, Mark] = {}
        self._published = True
        self._waiting: dict[str, None] = {}
        self._reported = asyncio.Event()

    @classmethod
    def of(
        cls, environ: Mapping[str, str], settings: TaskSettings, platform: TaskPlatform | None
    ) -> ResultUploads | None:
        """Return the uploads that the environment asks for. Raises ConfigurationError.

        The key of an S3 store comes from the task's secrets, else the environment, by the names that AWS
        uses. Without a location it is the platform's own store.
        """
        location, address = environ.get(RESULTS_LOCATION, "").strip(), environ.get(NVCT_FQDN, "").strip()
        if environ.get(NVCT_RESULT_HANDLING_STRATEGY) != "UPLOAD" or settings.results_dir is None:
            return None
        if not location and platform is not None and address:
            own_store = PlatformStore(address, settings.id, lambda: platform.token)
            return cls(settings.results_dir, settings.progress_file, own_store)
        if not location.startswith("s3://"):
            return None
        bucket, prefix = parse_s3(location)
        if not bucket:
            raise ConfigurationError(f"{RESULTS_LOCATION} names no bucket")
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
                self._published = False

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(upload_some())
        except* (StoreError, OSError) as errors:
            raise first_error(errors) from None
        if not self._published:
            await self._store.publish()
            self._published = True

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
