"""Directories of a request: input assets and output files (protocol.md, sections 4.7, 4.8 and 5.6)."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from nvcf_worker.function.headers import NamedFiles
from nvcf_worker.function.request import Asset

log = logging.getLogger("nvcf_worker")

PROGRESS_FILE = "progress"


def default_directory(shared_dir: Path, instance_id: str) -> Path:
    """Return where files of requests go when the environment does not say; empty it.

    It is in the shared configuration directory, or among the temporary files where that cannot be written.
    """
    if os.access(shared_dir, os.W_OK):
        path = shared_dir / "requests"
    else:
        path = Path(tempfile.gettempdir()) / f"nvcf-worker-{instance_id}"
    _remove([path])
    return path


@dataclass(slots=True, eq=False)
class RequestFiles:
    """The directories of one request, made when they are needed. Usable from any thread.

    `open`: every user may use them, since the function runs in another container.
    """

    asset_base: Path
    output_base: Path
    request_id: str
    open: bool = False
    assets: Mapping[str, Asset] = field(default_factory=dict)
    output_made: bool = False

    @property
    def asset_dir(self) -> Path:
        """Return the directory of the input assets, one file an asset id."""
        return self.asset_base / self.request_id

    @property
    def output_path(self) -> Path:
        """Return the path of the output directory, which may not exist yet."""
        return self.output_base / self.request_id

    @property
    def output_dir(self) -> Path:
        """Return the output directory; the first call makes it, empty."""
        path = self.output_path
        if not self.output_made:
            # Files of an earlier try, whose process was killed, are no part of this result.
            _remove([path])
            path.mkdir(parents=True, mode=0o700)
            if self.open:
                path.chmod(0o777)
            self.output_made = True
        return path

    def results(self) -> list[Path]:
        """Return the files that the function left, sorted, without the progress file."""
        return sorted(_files(self.output_path)) if self.output_made else []

    def forget_results(self) -> None:
        """Delete the files of a try that is repeated. Blocks."""
        if self.output_made:
            self.output_made = False
            _remove([self.output_path])

    async def remove(self) -> None:
        """Delete the directories that were made."""
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


@dataclass(slots=True, eq=False)
class FileContext:
    """The RequestContext of a request in this process: its files, and its progress.

    report: takes progress, on `loop`. carries_files: whether the output directory is read in the end, so that
    the headers name it; this is compatibility mode.
    """

    files: RequestFiles
    report: Callable[[float, Any], None]
    loop: asyncio.AbstractEventLoop
    _: KW_ONLY
    carries_files: bool

    @property
    def assets(self) -> Mapping[str, Asset]:
        return self.files.assets

    @property
    def output_dir(self) -> Path:
        return self.files.output_dir

    def named_files(self) -> NamedFiles | None:
        output = str(self.files.output_dir) if self.carries_files else ""
        if not output and not self.files.assets:
            return None
        return NamedFiles(str(self.files.asset_dir), tuple(self.files.assets), output)

    def progress(self, percent: float, partial: Any) -> None:
        check_percent(percent)
        try:
            on_loop = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            on_loop = False
        if on_loop:
            self.report(percent, partial)
        else:
            self.loop.call_soon_threadsafe(self.report, percent, partial)


def check_percent(percent: object) -> None:
    """Raise TypeError unless `percent` is a number."""
    if isinstance(percent, bool) or not isinstance(percent, int | float):
        raise TypeError(f"percent is {percent!r}; it must be a number from 0 to 100")
