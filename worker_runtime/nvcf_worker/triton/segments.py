"""Segments of system shared memory that this process owns."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from pathlib import Path

import numpy as np

from nvcf_worker.triton.tensors import Array

DIRECTORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is on Linux
PREFIX = "nvcf-triton-"


class Segment:
    """One segment. Its file is locked as long as its process lives: others see whether it is left over."""

    def __init__(self, size: int) -> None:
        """Create a segment. Raises OSError, also when there is too little shared memory."""
        self.size = size
        self.name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        self.key = f"/{self.name}"
        self._path = DIRECTORY / self.name
        self._descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Takes the memory now: a file with holes would end the process when memory runs out.
            os.posix_fallocate(self._descriptor, 0, size)
            self._map = mmap.mmap(self._descriptor, size)
        except BaseException:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise

    def write(self, offset: int, array: Array) -> None:
        """Copy an array into it."""
        target: Array = np.frombuffer(self._map, np.uint8, array.nbytes, offset)
        target[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    def read(self, offset: int, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
        """Return a copy of an array in it."""
        count = int(np.prod(shape))
        return np.frombuffer(self._map, dtype, count, offset).reshape(shape).copy()

    def remove(self) -> None:
        """Remove its name, and free the memory as soon as nobody else has it mapped."""
        self._path.unlink(missing_ok=True)
        self._map.close()
        os.close(self._descriptor)


def remove_left_over() -> list[str]:
    """Remove the segments of processes that have ended, and return their names."""
    removed = []
    for path in DIRECTORY.glob(f"{PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # another user's, or gone meanwhile
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed.append(path.name)
        except OSError:  # its process lives
            continue
        finally:
            os.close(descriptor)
    return removed


def exists(key: str) -> bool:
    """Return whether the segment of a key that Triton has is still there."""
    return (DIRECTORY / key.removeprefix("/")).exists()
