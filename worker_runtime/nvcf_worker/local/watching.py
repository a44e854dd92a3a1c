"""Noticing that the source of a function has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

SKIPPED = frozenset(("__pycache__", "node_modules", "venv", "site-packages"))
MAX_FILES = 5000

Marks = dict[str, tuple[int, int]]


def marks(folder: Path) -> Marks:
    """Modification time (ns) and size of every Python file below `folder`, by path."""
    found: Marks = {}
    for path in _sources(folder):
        try:
            status = os.stat(path)
        except OSError:  # removed since it was listed
            continue
        found[path] = (status.st_mtime_ns, status.st_size)
        if len(found) >= MAX_FILES:
            break
    return found


def _sources(folder: Path) -> Iterator[str]:
    for directory, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if name not in SKIPPED and not name.startswith("."))
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith("."):
                yield os.path.join(directory, name)


def changed(before: Marks, after: Marks) -> list[str]:
    """Paths that are new, gone or different, sorted."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
