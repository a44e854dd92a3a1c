"""Read a task's settings from arguments, the environment and defaults. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nvcf_proto.environment import (
    DEFAULT_SHARED_CONFIG_DIR,
    NVCT_RESULT_HANDLING_STRATEGY,
    SHARED_CONFIG_DIR,
)
from nvcf_worker.errors import ConfigurationError
from nvcf_worker.process.durations import parse_duration

RESULTS_DIR = "NVCT_RESULTS_DIR"
"""Folder for results. Required by tasks that use `results_dir`."""
PROGRESS_FILE = "NVCT_PROGRESS_FILE_PATH"
"""File for progress reports. Default: none are written."""
TASK_ID = "NVCT_TASK_ID"
"""Id of the task. Default: empty."""
TASK_NAME = "NVCT_TASK_NAME"
"""Name of the task. Default: empty."""
RESULTS_UPLOAD_URL = "NVCT_RESULTS_UPLOAD_URL"
"""[ext] URL that takes the results as one zip file by one PUT, e.g. a presigned one. Default: none."""
MAX_RUNTIME = "NVCT_MAX_RUNTIME_DURATION"
"""[ext] Longest run time, as a duration. Default: no limit."""
TERMINATION_GRACE = "NVCT_TERMINATION_GRACE_PERIOD_DURATION"
"""[ext] Time that a task gets to end, as a duration. Default: 25s."""
HEARTBEAT = "NVCT_HEARTBEAT_INTERVAL"
"""[ext] Longest time between two progress reports, as a duration. Default: 30s."""

DEFAULT_GRACE_SECONDS = 25.0
DEFAULT_HEARTBEAT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Settings of one task. Times are in seconds; None means no limit, no file or no upload."""

    id: str
    name: str
    results_dir: Path | None
    progress_file: Path | None
    shared_dir: Path
    upload_url: str | None
    max_seconds: float | None
    grace_seconds: float
    heartbeat_seconds: float
    names_repeat: bool = False
    """Several reports may have one name: the platform uploads no results."""


def read_settings(
    environ: Mapping[str, str], *, max_seconds: float | None = None, grace_seconds: float | None = None
) -> TaskSettings:
    """Combine arguments and environment. Raises ConfigurationError that names the wrong variable."""
    results = environ.get(RESULTS_DIR)
    progress = environ.get(PROGRESS_FILE)
    url = environ.get(RESULTS_UPLOAD_URL) or None
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{RESULTS_UPLOAD_URL} is not an http(s) URL")
    if url is not None and not results:
        raise ConfigurationError(f"{RESULTS_UPLOAD_URL} is set, but {RESULTS_DIR} names no folder to upload")
    if max_seconds is None and environ.get(MAX_RUNTIME, "").strip():
        max_seconds = _seconds(environ, MAX_RUNTIME, 0.0)
    if max_seconds is not None and max_seconds <= 0:
        raise ConfigurationError("the maximum run time must be above 0")
    if grace_seconds is None:
        grace_seconds = _seconds(environ, TERMINATION_GRACE, DEFAULT_GRACE_SECONDS)
    heartbeat = _seconds(environ, HEARTBEAT, DEFAULT_HEARTBEAT_SECONDS)
    if heartbeat <= 0:
        raise ConfigurationError(f"{HEARTBEAT} must be above 0")
    return TaskSettings(
        id=environ.get(TASK_ID, ""),
        name=environ.get(TASK_NAME, ""),
        results_dir=Path(results) if results else None,
        progress_file=Path(progress) if progress else None,
        shared_dir=Path(environ.get(SHARED_CONFIG_DIR) or DEFAULT_SHARED_CONFIG_DIR),
        upload_url=url,
        max_seconds=max_seconds,
        grace_seconds=grace_seconds,
        heartbeat_seconds=heartbeat,
        names_repeat=environ.get(NVCT_RESULT_HANDLING_STRATEGY) == "NONE",
    )


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigurationError(f"{name}: {error}") from error
