"""Files of requests: input assets, the output directory, the progress file (protocol.md sections 4 and 5)."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nvcf_worker.exchange.waiters import read_progress

if TYPE_CHECKING:
    from nvcf_worker.queue.delivery import ActiveRequest

log = logging.getLogger("nvcf_worker")

PROGRESS_FILE = "progress"
LOOK_INTERVAL = 0.5


@dataclass(frozen=True, slots=True)
class Asset:
    """An input asset on disk."""

    id: str
    path: Path
    content_type: str

    def __fspath__(self) -> str:
        return str(self.path)


def default_directory(shared_dir: Path, instance_id: str) -> Path:
    """Where files of requests go when the environment does not say; emptied of what a killed worker left.

    In the shared configuration directory, or among the temporary files where that cannot be written.
    """
    if os.access(shared_dir, os.W_OK):
        path = shared_dir / "requests"
    else:
        path = Path(tempfile.gettempdir()) / f"nvcf-worker-{instance_id}"
    _remove([path])
    return path


class RequestFiles:
    """The directories of one request. They are made when they are needed; usable from any thread."""

    __slots__ = ("_asset_base", "_output_base", "_request_id", "assets", "output_made")

    def __init__(self, asset_base: Path, output_base: Path, request_id: str) -> None:
        self._asset_base = asset_base
        self._output_base = output_base
        self._request_id = request_id
        self.assets: Mapping[str, Asset] = {}
        self.output_made = False

    @property
    def bases(self) -> tuple[Path, Path]:
        """Where the worker keeps the assets and the output directories of all its requests."""
        return self._asset_base, self._output_base

    @property
    def asset_dir(self) -> Path:
        """Where the request's input assets are, one file an asset id."""
        return self._asset_base / self._request_id

    @property
    def output_path(self) -> Path:
        """Name of the output directory, which may not be there yet."""
        return self._output_base / self._request_id

    @property
    def output_dir(self) -> Path:
        """Where files of a large result go; made, empty, by the first call."""
        path = self.output_path
        if not self.output_made:
            # What an earlier try left, whose process was killed, is no part of this one's result.
            _remove([path])
            path.mkdir(parents=True, mode=0o700)
            self.output_made = True
        return path

    def results(self) -> list[Path]:
        """Files that the function left, sorted; the progress file and those being written are none."""
        return sorted(_files(self.output_path)) if self.output_made else []

    def forget_results(self) -> None:
        """Delete what a try left that is repeated. Blocks."""
        if self.output_made:
            self.output_made = False
            _remove([self.output_path])

    async def remove(self) -> None:
        """Delete what was made."""
        made = [self.asset_dir] if self.assets else []
        if self.output_made:
            made.append(self.output_path)
        if made:
            await asyncio.to_thread(_remove, made)


def _files(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder) / name
            is_progress = path.parent == directory and name.startswith(PROGRESS_FILE)
            if not is_progress and path.is_file() and not path.is_symlink():
                yield path


def _remove(directories: Iterable[Path]) -> None:
    for directory in directories:
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("%s could not be removed: %s", directory, error)


class ProgressFiles:
    """Watches the progress files of a worker's requests."""

    def __init__(self, requests: Iterable[ActiveRequest]) -> None:
        self._requests = requests

    async def watch(self) -> None:
        """Look twice a second, until cancelled; each change is told to who waits."""
        seen: dict[str, tuple[int, int]] = {}
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            watched = {
                active.work.request_id: active
                for active in self._requests
                if active.files is not None and active.files.output_made
            }
            if not watched:
                seen.clear()
                continue
            paths = {
                name: active.files.output_path / PROGRESS_FILE
                for name, active in watched.items()
                if active.files is not None
            }
            changes, seen = await asyncio.to_thread(changed, paths, seen)
            for request_id, content in changes.items():
                _tell(watched[request_id], content)


def changed(
    paths: Mapping[str, Path], seen: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, bytes], dict[str, tuple[int, int]]]:
    """Contents of the files that changed since `seen`, and what has been seen now."""
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


def _tell(active: ActiveRequest, content: bytes) -> None:
    if active.conversation is None or not content:
        return
    try:
        percent, partial = read_progress(content)
    except ValueError as error:
        # A writer that does not replace the file in one step is seen in the middle of it.
        log.debug("progress file of %s: %s", active.work.request_id, error)
        return
    active.conversation.progress(percent, partial)
