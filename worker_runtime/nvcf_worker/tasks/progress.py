"""The progress file of a task: what the platform reads to know how far it is, and that it lives."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvcf_worker.process.exit_reason import write_atomically

log = logging.getLogger("nvcf_worker")

_NAME_FORBIDDEN = frozenset("/\\\0")


def checked_percent(percent: float) -> float:
    """A whole number where it is one. Raises ValueError outside of 0 to 100."""
    if isinstance(percent, bool) or not 0 <= percent <= 100:
        raise ValueError(f"progress is {percent!r}; it must be 0 to 100")
    return int(percent) if percent == int(percent) else float(percent)


def checked_name(name: str) -> str:
    """The name of a result. Raises ValueError for one that cannot be a folder's name."""
    if not name or name in (".", "..") or _NAME_FORBIDDEN & set(name) or len(name) > 190:
        raise ValueError(f"{name[:32]!r} cannot name a result; use the name of a folder among the results")
    return name


def rfc3339(seconds: float) -> str:
    """Unix seconds as `2024-05-01T12:00:00.250Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class ProgressFile:
    """Writes `{"taskId","percentComplete","name","lastUpdatedAt","metadata"}`; callable from any thread.

    With no path everything is kept and nothing written.
    """

    def __init__(
        self, path: Path | None, task_id: str, name: str, wall: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._wall = wall
        self._lock = threading.Lock()
        self._members: dict[str, Any] = {
            "taskId": task_id,
            "percentComplete": 0,
            "name": name,
            "lastUpdatedAt": "",
            "metadata": {},
        }

    @property
    def percent(self) -> float:
        """What was reported last."""
        return float(self._members["percentComplete"])

    def update(
        self, percent: float, name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Report progress. Raises ValueError for an impossible one, TypeError for what JSON cannot say."""
        changes: dict[str, Any] = {"percentComplete": checked_percent(percent)}
        if name is not None:
            changes["name"] = checked_name(name)
        if metadata is not None:
            changes["metadata"] = json.loads(json.dumps(dict(metadata), allow_nan=False))
        with self._lock:
            self._members.update(changes)
            self._write()

    def beat(self) -> None:
        """Say that the task lives: only `lastUpdatedAt` changes."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        self._members["lastUpdatedAt"] = rfc3339(self._wall())
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._members, ensure_ascii=False).encode())
        except OSError as error:
            # A full disk must not end hours of work; the next report may succeed.
            log.error("the progress file %s could not be written: %s", self._path, error)
