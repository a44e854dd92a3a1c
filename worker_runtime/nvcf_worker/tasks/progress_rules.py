"""The rules of the progress file, as a task's worker checks them (protocol.md, section 12.5). Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nvcf_worker.tasks.context import FIRST_PERCENT, LAST_PERCENT, checked_name

STALE_SECONDS = 300.0
LONGEST_METADATA = 2048


class BrokenRule(Exception):
    """The task has written what no task may write. The text says what."""


class Unreadable(Exception):
    """The file has no JSON object; it may be in the middle of a write."""


@dataclass(frozen=True)
class Report:
    """One report of progress. `metadata` is text of JSON."""

    percent: int
    name: str
    metadata: str


class ProgressRules:
    """Reads the file again and again, and holds each write to the rules."""

    def __init__(self, *, upload: bool) -> None:
        self._upload = upload
        self._last: tuple[int, str] | None = None

    @property
    def percent(self) -> int | None:
        """The last percentage, None before the first report."""
        return None if self._last is None else self._last[0]

    def read(self, data: bytes, now: float) -> Report | None:
        """Return what is new in the file at Unix time `now`; None if nothing is.

        Raises BrokenRule and Unreadable.
        """
        members = _object(data)
        percent, name = _percent(members), members.get("name")
        self._check_age(members, now)
        name = "" if name is None else name
        if not isinstance(name, str):
            raise BrokenRule("name is no text")
        if self._last == (percent, name):
            return None
        before, last_name = self._last or (0, None)
        if percent < before:
            raise BrokenRule(f"percentComplete falls from {before} to {percent}")
        if name or self._upload:
            try:
                checked_name(name)
            except ValueError as error:
                raise BrokenRule(f"name: {error}") from None
        if self._upload and name == last_name:
            raise BrokenRule(f"the name {name!r} is reported twice in a row")
        self._last = (percent, name)
        metadata = json.dumps(members.get("metadata") or {}, ensure_ascii=False)
        if len(metadata) > LONGEST_METADATA:
            raise BrokenRule(f"metadata is longer than {LONGEST_METADATA} characters")
        return Report(percent, name, metadata)

    def _check_age(self, members: dict[str, Any], now: float) -> None:
        try:
            updated = datetime.fromisoformat(members["lastUpdatedAt"])
            if updated.tzinfo is None:
                raise ValueError("no offset")
        except (KeyError, TypeError, ValueError):
            raise BrokenRule("lastUpdatedAt is no time of RFC 3339") from None
        if now - updated.timestamp() > STALE_SECONDS:
            raise BrokenRule(f"the progress file was not updated for {STALE_SECONDS:g} s")


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise Unreadable("the progress file has no JSON") from None
    if not isinstance(found, dict):
        raise Unreadable("the progress file has no JSON object")
    return found


def _percent(members: dict[str, Any]) -> int:
    percent = members.get("percentComplete")
    if not isinstance(percent, int) or isinstance(percent, bool):
        raise BrokenRule(f"percentComplete is {percent!r}; expected a whole number, 1 to 100")
    if not FIRST_PERCENT <= percent <= LAST_PERCENT:
        raise BrokenRule(f"percentComplete is {percent}; expected 1 to 100")
    return percent
