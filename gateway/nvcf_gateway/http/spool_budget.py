"""What request bodies in transit may take of memory and disk: of all accounts, and of each."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from nvcf_gateway.errors import HttpProblem

LEAST_BYTES = 1024 * 1024 * 1024
SHARE_OF_FREE = 0.25

Require = Callable[[str, int, int], None]
"""Raises HttpProblem unless so many bytes more fit for an account beside those that it uses."""


def spool_total(directory: Path | None, wanted: int | None) -> int:
    """Return the wanted limit, else a quarter of what is free where bodies are spooled, 1 GiB at least."""
    if wanted is not None:
        return wanted
    try:
        free = shutil.disk_usage(directory or tempfile.gettempdir()).free
    except OSError:
        return LEAST_BYTES
    return max(LEAST_BYTES, int(free * SHARE_OF_FREE))


class SpoolBudget:
    """Counts spooled bytes. `require` checks the quota of an account."""

    def __init__(self, total: int, require: Require) -> None:
        self.total = total
        self._require = require
        self._used = 0
        self._accounts: Counter[str] = Counter()

    def used(self, account: str) -> int:
        """Return what an account has spooled here."""
        return self._accounts[account]

    def take(self, account: str, size: int) -> None:
        """Count bytes that are about to be spooled. Raises HttpProblem 429 and 503."""
        self._require(account, self._accounts[account], size)
        if self._used + size > self.total:
            detail = (
                f"request bodies in transit have {self._used} of {self.total} bytes here: try again later"
            )
            raise HttpProblem(503, detail, headers={"Retry-After": "5"})
        self._used += size
        self._accounts[account] += size

    def give_back(self, account: str, size: int) -> None:
        """Count bytes no longer."""
        self._used -= size
        self._accounts[account] -= size
        if not self._accounts[account]:
            del self._accounts[account]
