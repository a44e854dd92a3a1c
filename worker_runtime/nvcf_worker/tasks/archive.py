"""A folder as one zip file, made while it is sent: no second copy on the disk."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

BLOCK = 1024 * 1024


class _Sink(io.RawIOBase):
    """Keeps what zipfile writes until it is taken. Not seekable, so that zipfile only goes forward."""

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


def files_of(folder: Path) -> list[tuple[Path, int]]:
    """Regular files below `folder` with their sizes, in a fixed order; links are left out."""
    found = []
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory) / name
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((path, status.st_size))
    return sorted(found)


def chunks(folder: Path, files: list[tuple[Path, int]]) -> Iterator[bytes]:
    """The archive. Raises OSError when a file is not of the size it had when it was listed."""
    for data, path, size in _archive(folder, files, read=True):
        if size:
            raise OSError(f"{path} has changed while it was sent")
        if data:
            yield data


def length(folder: Path, files: list[tuple[Path, int]]) -> int:
    """Bytes of the archive. It follows from names and sizes, so no file is read."""
    return sum(len(data) for data, _, _ in _archive(folder, files, read=False))


def _archive(folder: Path, files: list[tuple[Path, int]], *, read: bool) -> Iterator[tuple[bytes, Path, int]]:
    sink = _Sink()
    # Stored, not deflated: results are mostly weights and pictures, and the length is known beforehand.
    with zipfile.ZipFile(cast(BinaryIO, sink), "w", zipfile.ZIP_STORED) as archive:
        for path, size in files:
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            left = size
            large = size >= zipfile.ZIP64_LIMIT // 2
            with archive.open(info, "w", force_zip64=large) as entry, _opened(path, size, read) as source:
                while left and (block := source.read(min(BLOCK, left))):
                    left -= len(block)
                    entry.write(block)
                    yield sink.take(), path, 0
            yield sink.take(), path, left
    yield sink.take(), folder, 0


def _opened(path: Path, size: int, read: bool) -> BinaryIO:
    return path.open("rb") if read else cast(BinaryIO, _Zeros())


class _Zeros(io.RawIOBase):
    """A file of nothing but zeros, as long as anybody wants."""

    def read(self, size: int = -1, /) -> bytes:
        return bytes(size)
