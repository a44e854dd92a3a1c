"""Exit codes, and the file that says in words why a worker or task ended (protocol.md, section 5.8)."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from nvcf_broker.files import replace_file

log = logging.getLogger("nvcf_worker")

FILE_NAME = "nvcf-worker-exit.json"
"""The file in SHARED_CONFIG_DIR, written as the last action of a worker."""

DRAINED = 0


@dataclass(frozen=True, slots=True)
class ExitReason:
    """Exit code, category (kebab-case, for machines) and one sentence for people."""

    code: int
    category: str
    text: str

    def to_json(self) -> bytes:
        """Return the content of the file: `{"code", "category", "text"}`."""
        return json.dumps(asdict(self), ensure_ascii=False).encode() + b"\n"


def record(directory: Path, reason: ExitReason) -> None:
    """Write the reason to `directory`; log it if the file cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_file(directory / FILE_NAME, reason.to_json(), mode=0o644)
    except OSError as error:
        log.warning("the exit reason (%s) could not be written to %s: %s", reason.text, directory, error)
