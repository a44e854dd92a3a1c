"""Private files: written whole or not at all, readable by their owner only."""

import os
import tempfile
from pathlib import Path


def private_directory(path: Path) -> Path:
    """Make a folder (and its parents) that only its owner can enter; an existing one is closed to others."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_private(path: Path, content: str) -> None:
    """Replace a file by `content` in one step, mode 0600. Raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
