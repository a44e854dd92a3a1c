"""Why a worker ended: exit codes, and a file that says it in words."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger("nvcf_worker")

FILE_NAME = "nvcf-worker-exit.json"
"""Own addition: in SHARED_CONFIG_DIR, written as the last thing a worker does."""

DRAINED = 0
STARTUP = 1
CONFIGURATION = 2
FATAL = 3
NOT_READY = 4
SERVER_ENDED = 5


@dataclass(frozen=True, slots=True)
class ExitReason:
    """Exit code, category (kebab-case, for machines) and one sentence for people."""

    code: int
    category: str
    text: str

    def to_json(self) -> bytes:
        """The file's content: `{"code", "category", "text"}`."""
        return json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n"


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file so that a reader finds the old or the new content, never a part. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def record(directory: Path, reason: ExitReason) -> None:
    """Leave the reason in `directory`, or in the log where that cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / FILE_NAME, reason.to_json())
    except OSError as error:
        log.warning("the exit reason (%s) could not be written to %s: %s", reason.text, directory, error)


def read(directory: Path) -> ExitReason | None:
    """The recorded reason; None if there is none or it cannot be read."""
    try:
        members = json.loads((directory / FILE_NAME).read_bytes())
        return ExitReason(int(members["code"]), str(members["category"]), str(members["text"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
