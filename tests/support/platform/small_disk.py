"""A file system of a test's own that can be filled: a sparse image behind a loop device."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

SIZE = 2 * 1024**3


def can_make_disks() -> bool:
    """Return whether this process can make small disks."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists() and shutil.which("mkfs.ext4") is not None


needs_small_disks = pytest.mark.skipif(not can_make_disks(), reason="needs root, loop devices and mkfs.ext4")


class SmallDisk:
    """An ext4 file system at `path`. The image takes little space even when the file system is full.

    The kernel writes to the image what was synced; the rest stays in its cache for half a minute at least.
    """

    def __init__(self, folder: Path, size: int = SIZE, name: str = "disk") -> None:
        self._image = folder / f"{name}.image"
        self.path = folder / name
        self._size = size
        self._fillers = [self.path / "reserved", self.path / "written"]

    def __enter__(self) -> Self:
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(self._size)
        options = "lazy_itable_init=1,nodiscard"
        _run("mkfs.ext4", "-q", "-m", "0", "-E", options, str(self._image))
        self._mount()
        return self

    def _mount(self) -> None:
        # Without this the journal is written every 5 s.
        _run("mount", "-o", "loop,commit=600", str(self._image), str(self.path))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Lazily: a process of the test may still be ending there.
        _run("umount", "-l", str(self.path))
        self._image.unlink()

    def cut_power(self) -> None:
        """Lose everything that was not synced, as a machine does. Its processes have to be dead."""
        after = self._image.with_suffix(".after")
        _run("cp", "--sparse=always", str(self._image), str(after))
        _run("umount", "-l", str(self.path))
        after.replace(self._image)
        self._mount()

    def fill(self) -> None:
        """Take all space: most of it by reservation, the rest by writing."""
        state = os.statvfs(self.path)
        with self._fillers[0].open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - 1024**2)
        try:
            with self._fillers[1].open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError:
            pass

    def free(self) -> None:
        """Give the space back."""
        for filler in self._fillers:
            filler.unlink()


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
