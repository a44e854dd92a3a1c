"""The folders with the results of tasks: kept for some days after the end of a task."""

import contextlib
import shutil
from pathlib import Path

from nvcf_agent.backends.environment import PROGRESS_FILE
from nvcf_broker.files import private_directory

RESULTS = "results"
KEPT_SECONDS = 7 * 24 * 3600.0


def keep_results(found: Path, kept: Path, now: float) -> None:
    """Move the folder `found` of a task that is over to `kept`, and remove old ones beside it. Blocking."""
    if not found.is_dir() or not any(each.name != PROGRESS_FILE for each in found.iterdir()):
        return
    private_directory(kept.parent)
    with contextlib.suppress(OSError):
        found.replace(kept)
    for old in kept.parent.iterdir():
        if now - modified(old) > KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)


def modified(path: Path) -> float:
    """Return when a file was last changed, 0 if that is not known."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
