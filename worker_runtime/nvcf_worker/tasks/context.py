"""`Task`, the argument of a task's main function, and the progress file behind it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvcf_broker.files import replace_file
from nvcf_worker.function.cancellation import Cancellation
from nvcf_worker.tasks.settings import RESULTS_DIR, TaskSettings

log = logging.getLogger("nvcf_worker")

_NAME_FORBIDDEN = frozenset("/\\\0")


class Task:
    """One run of a task."""

    def __init__(self, settings: TaskSettings, progress: ProgressFile, started: float) -> None:
        self._settings = settings
        self._progress = progress
        self._started = started
        self.cancelled = Cancellation()
        """Set when the task has to end: on SIGTERM, a termination notice or the maximum run time."""

    @property
    def id(self) -> str:
        """The task's id; empty outside of the platform."""
        return self._settings.id

    @property
    def name(self) -> str:
        """The task's name; empty outside of the platform."""
        return self._settings.name

    @property
    def results_dir(self) -> Path:
        """The folder for results, created on first use. Raises RuntimeError if the platform named none."""
        if self._settings.results_dir is None:
            raise RuntimeError(f"this task has no folder for results: {RESULTS_DIR} is not set")
        self._settings.results_dir.mkdir(parents=True, exist_ok=True)
        return self._settings.results_dir

    @property
    def deadline(self) -> datetime | None:
        """When the maximum run time is over (UTC); None without a maximum."""
        if self._settings.max_seconds is None:
            return None
        return datetime.fromtimestamp(self._started + self._settings.max_seconds, UTC)

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline; None without a maximum run time."""
        if self._settings.max_seconds is None:
            return None
        return self._started + self._settings.max_seconds - time.time()

    def progress(
        self, percent: float, *, name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Report progress, from any thread.

        percent: 0 to 100. name: the result that is being made, a folder in `results_dir`. metadata: values
        that JSON can represent. Raises ValueError or TypeError for values that cannot be reported.
        """
        self._progress.update(percent, name, metadata)


class ProgressFile:
    """The file from which the platform learns a task's progress and that it is alive.

    Its content is `{"taskId","percentComplete","name","lastUpdatedAt","metadata"}`. Any thread may call it.
    Without a path the values are kept and nothing is written.
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
        """The percentage of the last report."""
        return float(self._members["percentComplete"])

    def update(
        self, percent: float, name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Report progress. Raises ValueError for invalid values, TypeError for metadata that is not JSON."""
        changes: dict[str, Any] = {"percentComplete": checked_percent(percent)}
        if name is not None:
            changes["name"] = checked_name(name)
        if metadata is not None:
            changes["metadata"] = json.loads(json.dumps(dict(metadata), allow_nan=False))
        with self._lock:
            self._members.update(changes)
            self._write()

    def heartbeat(self) -> None:
        """Report that the task is alive: only `lastUpdatedAt` changes."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        self._members["lastUpdatedAt"] = rfc3339(self._wall())
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(self._members, ensure_ascii=False).encode(), mode=0o644)
        except OSError as error:
            # A full disk must not end hours of work; the next report may succeed.
            log.error("the progress file %s could not be written: %s", self._path, error)


def checked_percent(percent: float) -> float:
    """Return the percentage, as an integer if it is whole. Raises ValueError outside of 0 to 100."""
    if isinstance(percent, bool) or not 0 <= percent <= 100:
        raise ValueError(f"progress is {percent!r}; it must be 0 to 100")
    return int(percent) if percent == int(percent) else float(percent)


def checked_name(name: str) -> str:
    """Return the name of a result. Raises ValueError if it cannot be the name of a folder."""
    if not name or name in (".", "..") or _NAME_FORBIDDEN & set(name) or len(name) > 190:
        raise ValueError(f"{name[:32]!r} cannot name a result; use the name of a folder among the results")
    return name


def rfc3339(seconds: float) -> str:
    """Format Unix seconds as `2024-05-01T12:00:00.250Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
