"""What a task's main function works with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvcf_worker.function.cancellation import Cancellation
from nvcf_worker.tasks.progress import ProgressFile
from nvcf_worker.tasks.settings import RESULTS_DIR, TaskSettings


class Task:
    """One run of a task."""

    def __init__(self, settings: TaskSettings, progress: ProgressFile, started: float) -> None:
        self._settings = settings
        self._progress = progress
        self._started = started
        self.cancelled = Cancellation()
        """Set when the task has to end: SIGTERM, a notice of termination, maximum run time."""

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
        """Where results go; made when first asked for. Raises RuntimeError when the platform named none."""
        if self._settings.results_dir is None:
            raise RuntimeError(f"this task has no folder for results: {RESULTS_DIR} is not set")
        self._settings.results_dir.mkdir(parents=True, exist_ok=True)
        return self._settings.results_dir

    @property
    def deadline(self) -> datetime | None:
        """When the maximum run time is over (UTC); None without one."""
        if self._settings.max_seconds is None:
            return None
        return datetime.fromtimestamp(self._started + self._settings.max_seconds, UTC)

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline; None without one."""
        if self._settings.max_seconds is None:
            return None
        return self._started + self._settings.max_seconds - time.time()

    def progress(
        self, percent: float, *, name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Report how far it is, from any thread.

        percent: 0 to 100. name: of the result in the making, a folder in `results_dir`. metadata: anything
        JSON can say. Raises ValueError or TypeError for what cannot be reported.
        """
        self._progress.update(percent, name, metadata)
