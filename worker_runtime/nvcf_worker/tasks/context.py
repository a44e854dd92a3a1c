"""`Task`, the argument of a task's main function, and the progress file behind it."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvcf_broker.files import replace_file
from nvcf_worker.function.cancellation import Cancellation
from nvcf_worker.tasks.checkpoints import DEFAULT_KEEP, FOLDER, Checkpoints
from nvcf_worker.tasks.settings import RESULTS_DIR, TaskSettings

log = logging.getLogger("nvcf_worker")

_NAME = re.compile(r"[a-zA-Z0-9!_.*'()-]{1,190}")
FIRST_PERCENT, LAST_PERCENT = 1, 100


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
            raise RuntimeError(
                f"this task has no folder for results: set {RESULTS_DIR} to one; a platform does so itself"
            )
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

        percent: 0 to 100; whole percents from 1 on are reported, and never fewer than before. name: the
        result that is being made, a folder in `results_dir`. metadata: values that JSON can represent. Raises
        ValueError or TypeError for values that cannot be reported.
        """
        self._progress.update(percent, name, metadata)

    def checkpoint(self, path: str | os.PathLike[str], *, keep: int = DEFAULT_KEEP) -> Path:
        """Copy a file or folder with the task's state, so that a later run of the task can go on from it.

        The copy is in `checkpoints/` of `results_dir`, on the disk when this returns, and complete or not
        there, whenever the process is killed. The newest `keep` copies stay. Returns the copy. Raises
        OSError, for example on a full disk; earlier checkpoints are still there then.
        """
        return self._checkpoints().add(Path(path), keep)

    def resume(self) -> Path | None:
        """Return the newest checkpoint of this run or an earlier one of the task; None: start anew.

        It is a file or folder as `checkpoint` was given. Do not write to it.
        """
        return self._checkpoints().newest()

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.results_dir / FOLDER)


class ProgressFile:
    """The file from which the platform learns a task's progress and that it is alive.

    Its content is `{"taskId","percentComplete","name","lastUpdatedAt","metadata"}`. Any thread may call it.
    Without a path the values are kept and nothing is written. NVIDIA's worker ends a task for a write that
    breaks a rule, so none does: percentages are whole, from 1 to 100, and do not fall. Unless the platform is
    known to allow it (`repeats`), no two reports have the same name: a percentage without a new name is held
    back until the next named report.
    """

    def __init__(
        self,
        path: Path | None,
        task_id: str,
        name: str,
        wall: Callable[[], float] = time.time,
        *,
        repeats: bool = False,
    ) -> None:
        self._path = path
        self._wall = wall
        self._lock = threading.Lock()
        self._default = usable_name(name)
        self._repeats = repeats
        self._reported = False
        self._held = 0
        self._members: dict[str, Any] = {
            "taskId": task_id,
            "percentComplete": 0,
            "name": "",
            "lastUpdatedAt": "",
            "metadata": {},
        }

    @property
    def percent(self) -> int:
        """The highest percentage so far, reported or held back; 0 before the first one."""
        return self._held

    def update(
        self, percent: float, name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Report progress. Raises ValueError for invalid values, TypeError for metadata that is not JSON."""
        whole = checked_percent(percent)
        if name is not None:
            checked_name(name)
        known = None if metadata is None else json.loads(json.dumps(dict(metadata), allow_nan=False))
        with self._lock:
            self._held = max(self._held, whole)
            if known is not None:
                self._members["metadata"] = known
            wanted = name or self._members["name"] or self._default
            if self._repeats or wanted != self._members["name"]:
                self._members |= {"percentComplete": self._held, "name": wanted}
            self._reported = True
            self._write()

    def complete(self) -> None:
        """Report 100, under a name of its own where that is needed."""
        if self._members["percentComplete"] == LAST_PERCENT:
            self.heartbeat()
            return
        last = self._members["name"]
        free = next(each for each in (self._default, "complete", "completed") if each != last)
        self.update(LAST_PERCENT, None if self._repeats else free)

    def heartbeat(self) -> None:
        """Report that the task is alive: only `lastUpdatedAt` changes. Nothing before the first report."""
        with self._lock:
            if self._reported:
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


def checked_percent(percent: float) -> int:
    """Return the percentage as it is reported. Raises ValueError outside of 0 to 100."""
    if isinstance(percent, bool) or not 0 <= percent <= LAST_PERCENT:
        raise ValueError(f"progress is {percent!r}; it must be 0 to 100")
    return max(FIRST_PERCENT, int(percent))


def checked_name(name: str) -> str:
    """Return the name of a result, which is that of a folder. Raises ValueError if it cannot be one."""
    if name in (".", "..") or _NAME.fullmatch(name) is None:
        raise ValueError(
            f"{name[:32]!r} cannot name a result; use 1 to 190 letters, digits and any of ! _ . * ' ( ) -"
        )
    return name


def usable_name(name: str) -> str:
    """Return a name of a result that is made of another text, such as the task's name."""
    kept = re.sub(r"[^a-zA-Z0-9!_.*'()-]", "-", name)[:190].strip(".")
    return kept or "task"


def rfc3339(seconds: float) -> str:
    """Format Unix seconds as `2024-05-01T12:00:00.250Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
