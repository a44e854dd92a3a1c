"""Private folders, and files that are replaced as a whole or not at all."""

import os
import tempfile
from pathlib import Path


def private_directory(path: Path) -> Path:
    """Create a folder (and its parents) that only its owner can enter; close an existing one to others."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_private(path: Path, content: str) -> None:
    """Replace a file with mode 0600, and wait until it is on the disk. Raises OSError."""
    replace_file(path, content.encode(), durable=True)


def replace_file(
    path: Path, content: bytes, *, mode: int = 0o600, durable: bool = False, owner: int | None = None
) -> None:
    """Replace a file in one step, so that readers see either the old content or the new. Raises OSError.

    durable: wait until the content is on the disk. owner: user and group that the file is given to.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
            if owner is not None:
                os.fchown(file.fileno(), owner, owner)
        os.chmod(temporary, mode)
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
