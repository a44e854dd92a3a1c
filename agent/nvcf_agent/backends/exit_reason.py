"""The reason that a worker gives for its end, in its shared folder (protocol.md, section 5.8)."""

import contextlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from nvcf_agent.state.managed_instance import Category

FILE = "nvcf-worker-exit.json"
# The function can write the file, and may have put anything there.
_LARGEST = 64 * 1024
_TEXT_LIMIT = 1000
_UNHEALTHY = ("fatal", "unhealthy")


@dataclass(frozen=True)
class ExitReason:
    """Exit code, category and one sentence."""

    code: int
    category: str
    text: str


def forget_exit_reason(shared: Path) -> None:
    """Remove the reason of an earlier process of the instance."""
    with contextlib.suppress(OSError):
        (shared / FILE).unlink()


def read_exit_reason(shared: Path) -> ExitReason | None:
    """Read the reason; None if there is none that makes sense."""
    try:
        descriptor = os.open(shared / FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        data = os.pread(descriptor, _LARGEST, 0) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return parse_exit_reason(data)


def parse_exit_reason(data: bytes) -> ExitReason | None:
    """Return the reason in a file's content. Pure."""
    try:
        members = json.loads(data)
        code, category, text = members["code"], members["category"], members["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(code, int) or not isinstance(category, str) or not isinstance(text, str):
        return None
    return ExitReason(code, category, " ".join(text.split())[:_TEXT_LIMIT])


def explained(category: Category, how: str, code: int, reason: ExitReason | None) -> tuple[Category, str]:
    """Return category and first line of an end, with the worker's own reason if it fits the exit code. Pure.

    A worker that left because its instance is broken or unhealthy had been started, and has not crashed.
    """
    if reason is None or reason.code != code or code == 0 or category is not Category.CRASH:
        return category, how
    unhealthy = reason.category in _UNHEALTHY
    return (Category.UNHEALTHY if unhealthy else category), f"{reason.text} ({how})"
