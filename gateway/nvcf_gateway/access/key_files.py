"""Keys in a file, or in a folder of files: the newest is used first. Changed files are read again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from nvcf_gateway.errors import SetupError

_log = logging.getLogger(__name__)

R = TypeVar("R")

CHECK_SECONDS = 1.0
URGENT_SECONDS = 0.05

Stamp = tuple[tuple[str, int, int, int], ...]


class KeyFiles(Generic[R]):
    """The current keys of `path`. `read` makes them from the files, newest first; it may raise SetupError.

    In a folder only files that end in `suffix` count. `what` names the keys in logs and errors.
    """

    def __init__(self, path: Path, suffix: str, what: str, read: Callable[[list[Path]], R]) -> None:
        """Read the keys. Raises SetupError. Blocking."""
        self._path = path
        self._suffix = suffix
        self._what = what
        self._make = read
        self._checked = time.monotonic()
        self._stamp = self._stamp_now()
        self.ring = self._read()

    async def follow(self) -> None:
        """Read the keys again when the files change, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await asyncio.to_thread(self.refresh)

    def refresh_if_due(self) -> None:
        """Refresh at most once in `URGENT_SECONDS`: anybody can send something that names unknown keys."""
        now = time.monotonic()
        if now - self._checked >= URGENT_SECONDS:
            self._checked = now
            self.refresh()

    def refresh(self) -> bool:
        """Read the keys again if the files have changed; return whether they have.

        If the files cannot be read, the keys of before stay.
        """
        try:
            stamp = self._stamp_now()
            if stamp == self._stamp:
                return False
            ring = self._read()
        except (SetupError, OSError) as error:
            # The files may be half written: the next refresh tries again.
            _log.error("%s: %s; the previous keys stay in use", self._what, error)
            return False
        # In this order: another thread that sees the new stamp must see the new ring.
        self.ring = ring
        self._stamp = stamp
        _log.info("%s read again", self._what, extra={"keys": len(stamp)})
        return True

    def _stamp_now(self) -> Stamp:
        found = []
        for each in key_files(self._path, self._suffix):
            status = each.stat()
            found.append((each.name, status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def _read(self) -> R:
        try:
            return self._make(key_files(self._path, self._suffix))
        except OSError as error:
            raise SetupError(f"cannot read the {self._what} in {self._path}: {error.strerror}") from error


def key_files(path: Path, suffix: str) -> list[Path]:
    """Return the key files, newest first: by whole seconds, then by name.

    Whole seconds, because mounted secrets are written all at once, in any order.
    """
    if not path.is_dir():
        return [path]
    files = [each for each in path.iterdir() if each.suffix == suffix and not each.name.startswith(".")]
    return sorted(files, key=lambda each: (int(each.stat().st_mtime), each.name), reverse=True)


def create_key_file(path: Path, content: bytes, what: str) -> None:
    """Write a new key (mode 0600), unless somebody has created the file meanwhile. Raises SetupError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        # Atomic: the first replica that links creates the key for all that share the folder.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    except OSError as error:
        raise SetupError(f"cannot create the {what} {path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
