"""Checkpoints of a task: copies of its state that are there as a whole or not at all.

A checkpoint is made under a hidden name, written to the disk, and renamed: whatever has a final name is
complete, at whatever moment the process or the machine died. One that is removed loses its name first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

FOLDER = "checkpoints"
DEFAULT_KEEP = 3
_NAME = re.compile(r"([0-9]{8,})-.+", re.DOTALL)
_DRAFT, _REMOVED = ".new-", ".old-"


class Checkpoints:
    """The checkpoints in one folder, which is created with the first. Other processes may use it, too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, source: Path, keep: int = DEFAULT_KEEP) -> Path:
        """Copy a file or folder, and return the copy; keep the newest `keep` ones.

        It waits while another process or thread adds one. Links inside a folder stay links. Raises ValueError
        for a `keep` below 1 and OSError; the checkpoints that there were are then still there.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least 1 checkpoint is kept")
        source = source.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._clear()
            draft = Path(tempfile.mkdtemp(dir=self._folder, prefix=_DRAFT))
            try:
                copy = draft / source.name
                _copy(source, copy)
                known = self.all()
                number = self._number(known[-1]) + 1 if known else 1
                path = self._folder / f"{number:08d}-{source.name}"
                copy.rename(path)
                _sync(self._folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            for old in [*known, path][:-keep]:
                old.rename(self._folder / f"{_REMOVED}{old.name}")
            self._clear()
        return path

    def newest(self) -> Path | None:
        """Return the newest checkpoint, a file or folder as it was given; None without one."""
        known = self.all()
        return known[-1] if known else None

    def all(self) -> list[Path]:
        """Return all checkpoints, the oldest first."""
        try:
            found = [each for each in self._folder.iterdir() if _NAME.fullmatch(each.name)]
        except FileNotFoundError:
            return []
        return sorted(found, key=self._number)

    @staticmethod
    def _number(path: Path) -> int:
        return int(path.name.partition("-")[0])

    def _clear(self) -> None:
        """Remove what killed processes have begun to write or to remove. Only with the lock."""
        for each in self._folder.iterdir():
            if each.name.startswith((_DRAFT, _REMOVED)):
                if each.is_dir() and not each.is_symlink():
                    shutil.rmtree(each, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        each.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # a process that dies gives it up
            try:
                yield
            finally:
                # Not only closed: a child that was forked meanwhile has the file open, too.
                fcntl.flock(file, fcntl.LOCK_UN)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder, and wait until it is on the disk."""
    if not source.is_dir():
        shutil.copy2(source, target)
        _sync(target)
        return
    shutil.copytree(source, target, symlinks=True)
    for directory, _, names in os.walk(target):
        for name in names:
            path = Path(directory) / name
            if not path.is_symlink():
                _sync(path)
        os.chmod(directory, 0o700)  # a read-only folder could be neither renamed nor removed
        _sync(Path(directory))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
