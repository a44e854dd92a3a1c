"""The folders with the results of tasks: kept for some days after the end of a task."""

import contextlib
import logging
import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

from nvcf_agent.backends.environment import PROGRESS_FILE
from nvcf_broker.files import private_directory

_log = logging.getLogger(__name__)

RESULTS = "results"
KEPT_SECONDS = 7 * 24 * 3600.0
KEPT_PART = 2
"""All kept results take at most this part of their disk, one half; the newest ones stay in any case."""


@dataclass
class KeptResults:
    """Results of tasks that are over, in `folder`. The oldest are removed first. All calls block."""

    folder: Path
    _sizes: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, found: Path, instance_id: str, now: float) -> bool:
        """Move the folder `found` here, if it has results. Return False if that failed: it is left there."""
        with self._lock:
            try:
                if _has_results(found):
                    self._move(found, self.folder / instance_id, now)
            except OSError as error:
                _log.error("the results of instance %s stay in %s: %s", instance_id, found, error)
                return False
        return True

    def take(self, instance_id: str, left: Path, to: Path) -> None:
        """Move what an ended run has left to the next one: kept here, or still where it ran (`left`).

        The progress file stays out, for it is not of the new run. Without results nothing is moved.
        """
        with self._lock:
            for found in (self.folder / instance_id, left):
                try:
                    if _has_results(found):
                        found.replace(to)
                        (to / PROGRESS_FILE).unlink(missing_ok=True)
                        self._sizes.pop(instance_id, None)
                        return
                except OSError as error:
                    _log.error("the results of instance %s are not continued: %s", instance_id, error)

    def _move(self, found: Path, kept: Path, now: float) -> None:
        private_directory(self.folder)
        found.replace(kept)
        # The task may have set another time.
        os.utime(kept, (now, now))
        self._remove_old(now, shutil.disk_usage(self.folder).total // KEPT_PART)

    def _remove_old(self, now: float, most: int) -> None:
        """Remove what is older than a week, and the oldest beyond `most` bytes."""
        total = 0
        for number, each in enumerate(sorted(self.folder.iterdir(), key=modified, reverse=True)):
            size = self._sizes.get(each.name)
            if size is None:
                size = self._sizes[each.name] = _size(each)
            total += size
            if now - modified(each) <= KEPT_SECONDS and (number == 0 or total <= most):
                continue
            _log.info("the results of instance %s (%d bytes) are removed", each.name, size)
            shutil.rmtree(each, ignore_errors=True)
            del self._sizes[each.name]
            total -= size


def _has_results(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    # A task may have taken the rights away.
    folder.chmod(0o700)
    return any(each.name != PROGRESS_FILE for each in folder.iterdir())


def _size(folder: Path) -> int:
    """Return the bytes that a folder takes on the disk. Links are not followed."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total


def modified(path: Path) -> float:
    """Return when a file was last changed, 0 if that is not known."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
