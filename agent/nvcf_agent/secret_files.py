"""Where secrets lie on this machine: in memory if it has a tmpfs, readable by their instance alone."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvcf_agent.errors import StartError
from nvcf_broker.files import private_directory, replace_file
from nvcf_proto.secrets import SECRETS_FILE

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only folders with random names are made in it
_PREFIX = "nvcf-secrets-"
# Held by the agent whose folder it is in, until that agent ends in whatever way.
_LOCK = ".lock"
_MOUNTS = Path("/proc/self/mounts")
_BESIDE = "secret-files"
_TELEMETRY = "telemetry-kept"
# A folder may be just being made: it has no lock yet, or one that is not held yet.
_MADE_WITHIN_SECONDS = 60.0
_LOCKED_WITHIN_SECONDS = 2.0


def is_tmpfs(folder: Path, mounts: Path = _MOUNTS) -> bool:
    """Return whether a folder is a tmpfs: its files are in memory. Blocking."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    found = [line.split(" ") for line in lines]
    kinds = [parts[2] for parts in found if len(parts) > 2 and parts[1] == str(folder)]
    return kinds[-1:] == ["tmpfs"] and os.access(folder, os.W_OK | os.X_OK)


class SecretFolders:
    """Folders with the secrets of instances. `data` is the agent's folder."""

    def __init__(self, data: Path, memory: Path = SHARED_MEMORY) -> None:
        self._on_disk = data / _TELEMETRY
        self._memory = memory
        self._base: Path | None = None
        self._lock = -1
        self._made: dict[str, Path] = {}

    def open(self) -> None:
        """Make a folder in memory if there is any; remove those of agents that were killed. Blocking."""
        self.close()
        if is_tmpfs(self._memory):
            remove_abandoned(self._memory)
            self._base = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._memory))
            self._lock = os.open(self._base / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # Users of instances pass it to reach their own folder, and cannot list it.
            self._base.chmod(0o711)

    def close(self) -> None:
        """Remove all secrets. Blocking."""
        if self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)
            os.close(self._lock)
        shutil.rmtree(self._on_disk, ignore_errors=True)
        self._base = None

    @property
    def telemetry(self) -> Path:
        """Folder for secrets of telemetry endpoints, by account. It may have to be made."""
        return self._on_disk if self._base is None else self._base / _TELEMETRY

    def make(self, instance_id: str, home: Path, uid: int | None) -> Path:
        """Return the folder of an instance, which only its user `uid` (None: the agent's) can read. Blocking.

        The folder stays the agent's: its user cannot replace anything in it.
        """
        folder = home / _BESIDE if self._base is None else self._base / instance_id
        self._made[instance_id] = folder
        private_directory(folder)
        if uid is not None:
            os.chown(folder, -1, uid)
            folder.chmod(0o750)
        return folder

    def remove(self, instance_id: str) -> None:
        """Remove the folder of an instance, if it has one. Blocking."""
        folder = self._made.pop(instance_id, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


class FileSink:
    """Writes the secrets of instances into their folders."""

    def __init__(self, folders: SecretFolders) -> None:
        self._folders = folders
        self._places: dict[str, tuple[Path, int | None]] = {}

    async def open(self) -> None:
        await asyncio.to_thread(self._folders.open)

    async def close(self) -> None:
        await asyncio.to_thread(self._folders.close)

    async def make(self, instance_id: str, home: Path | None, uid: int | None) -> Path:
        if home is None:
            raise StartError(f"instance {instance_id} has no folder for its secrets")
        folder = await asyncio.to_thread(self._folders.make, instance_id, home, uid)
        self._places[instance_id] = folder, uid
        return folder

    async def write(self, instance_id: str, values: Mapping[str, Any]) -> None:
        place = self._places.get(instance_id)
        if place is not None:
            await asyncio.to_thread(write_values, place[0], values, place[1])

    async def remove(self, instance_id: str) -> None:
        self._places.pop(instance_id, None)
        await asyncio.to_thread(self._folders.remove, instance_id)


def remove_abandoned(memory: Path) -> None:
    """Remove the folders of this user's agents that have ended without removing them. Blocking."""
    for folder in memory.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
            if own and _is_abandoned(folder, time.time() - status.st_mtime):
                shutil.rmtree(folder)


def _is_abandoned(folder: Path, age: float) -> bool:
    if age < _LOCKED_WITHIN_SECONDS:
        return False
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return age > _MADE_WITHIN_SECONDS
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def write_values(folder: Path, values: Mapping[str, Any], uid: int | None) -> None:
    """Replace `secrets.json` in one step; without values remove it. Blocking.

    A folder that is gone is that of an instance that has ended meanwhile.
    """
    path = folder / SECRETS_FILE
    if not values:
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        replace_file(path, json.dumps(values).encode(), owner=uid)
