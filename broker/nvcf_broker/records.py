"""State of a mirror: the records of a bucket. Pure."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_log = logging.getLogger(__name__)

T = TypeVar("T")

_KEY = re.compile(r"[-/_=A-Za-z0-9]+(?:\.[-/_=A-Za-z0-9]+)*")


def valid_key(key: str) -> bool:
    """Return whether text can be a key: letters, digits, `-/_=`, in parts separated by single dots."""
    return _KEY.fullmatch(key) is not None


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A record and the revision (stream sequence) that wrote it."""

    value: T
    revision: int


@dataclass(frozen=True)
class Update:
    """One message of a bucket. `data` is None for a deletion."""

    key: str
    data: bytes | None
    revision: int

    @property
    def deleted(self) -> bool:
        """Return whether the message is a deletion."""
        return self.data is None


def parse_update(key: str, data: bytes, headers: Mapping[str, str] | None, revision: int) -> Update:
    """Read a bucket's message. The writer marks deletions, the server marks expired records."""
    marked = headers is not None and (
        headers.get("KV-Operation") in ("DEL", "PURGE") or headers.get("Nats-Marker-Reason") is not None
    )
    return Update(key, None if marked else data, revision)


@dataclass
class Records(Generic[T]):
    """The live records of a bucket.

    A session is `begin`, any number of `apply`, `complete` after the snapshot, then more `apply`. Updates may
    arrive twice and, between sessions and own writes, out of order: the highest revision wins.
    """

    bucket: str
    decode: Callable[[bytes], T]
    entries: dict[str, Entry[T]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    """Keys whose deletion the bucket still records. What it has merely lost is not among them."""
    _revisions: dict[str, int] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _incarnation: str = ""
    _known_until: int = 0
    _complete: bool = False

    def begin(self, incarnation: str, last_revision: int) -> None:
        """Start a session with a bucket created at `incarnation` whose latest revision is `last_revision`."""
        newest = max(self._revisions.values(), default=0)
        # A bucket that was created anew, or restored from a backup, counts revisions from an earlier point.
        if incarnation != self._incarnation or last_revision < newest:
            self._revisions.clear()
            self.deleted.clear()
        self._incarnation = incarnation
        self._known_until = last_revision
        self._seen.clear()
        self._complete = False

    def apply(self, update: Update) -> bool:
        """Apply one message. Return True if a record was added, changed or removed."""
        if not self._complete:
            self._seen.add(update.key)
        if update.revision <= self._revisions.get(update.key, 0):
            return False
        self._revisions[update.key] = update.revision
        if update.data is None:
            self.deleted.add(update.key)
            return self.entries.pop(update.key, None) is not None
        self.deleted.discard(update.key)
        try:
            value = self.decode(update.data)
        except ValueError as error:
            _log.warning("%s: skipping the unreadable record %s: %s", self.bucket, update.key, error)
            return self.entries.pop(update.key, None) is not None
        self.entries[update.key] = Entry(value, update.revision)
        return True

    @property
    def is_complete(self) -> bool:
        """Return whether the snapshot is complete."""
        return self._complete

    def complete(self) -> list[str]:
        """Drop records that the snapshot did not contain, and return their keys. Idempotent."""
        if self._complete:
            return []
        self._complete = True
        gone = [
            key
            for key in self._revisions.keys() | self.entries.keys()
            if key not in self._seen and self._revisions.get(key, 0) <= self._known_until
        ]
        for key in gone:
            self._revisions.pop(key, None)
            self.deleted.discard(key)
        self._seen.clear()
        return [key for key in gone if self.entries.pop(key, None) is not None]
