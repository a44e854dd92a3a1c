"""The in-flight journal [own addition]: which requests a killed worker held.

A small memory-mapped file; the kernel keeps its pages when the process is killed. A worker that starts again
as the same instance returns its predecessor's requests to the queue, so redelivery takes milliseconds instead
of the consumer's ack wait. Its format is in nvcf_proto.journal.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
from pathlib import Path

from nvcf_proto.environment import SHARED_CONFIG_DIR
from nvcf_proto.journal import (
    ENTRY,
    ENTRY_STRUCT,
    FILE_NAME,
    HEADER_STRUCT,
    HEARTBEAT_AT,
    MAGIC,
    MAX_SUBJECT,
    Orphan,
    entry_offset,
    read_orphans,
)
from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.errors import JournalError

log = logging.getLogger("nvcf_worker")

_HEARTBEAT = struct.Struct("<d")


class Journal:
    """Ack subjects of unfinished requests; `orphans` are those of a killed predecessor."""

    def __init__(self, descriptor: int, pages: mmap.mmap, count: int, orphans: list[Orphan]) -> None:
        self._descriptor = descriptor
        self._pages = pages
        self.orphans = orphans
        # The entries of orphans stay until they are back in the queue.
        self._kept = len(orphans)
        self._free = list(range(count - 1, self._kept - 1, -1))

    @classmethod
    def open(cls, path: Path, instance_id: str, capacity: int) -> Journal:
        """Lock and read the file, or create it, with room for `capacity` requests beside the orphans.

        Raises JournalError when another process holds it or the place is not writable.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            orphans = read_orphans(data, instance_id)
            count = capacity + len(orphans)
            os.ftruncate(descriptor, (count + 1) * ENTRY)
            pages = mmap.mmap(descriptor, (count + 1) * ENTRY)
        except BlockingIOError as error:
            os.close(descriptor)
            raise JournalError(f"{path} is held by another worker process") from error
        except (OSError, ValueError) as error:
            os.close(descriptor)
            raise JournalError(f"cannot use {path}: {error}") from error
        _rewrite(pages, instance_id, count, orphans)
        return cls(descriptor, pages, count, orphans)

    def add(self, ack_subject: str, *, now: float, ack_wait: float) -> int:
        """Add a request; return its entry, or -1 without room: it would only be redelivered later."""
        subject = ack_subject.encode()
        if not self._free or len(subject) > MAX_SUBJECT:
            return -1
        entry = self._free.pop()
        _write_entry(self._pages, entry, subject, now, ack_wait)
        return entry

    def remove(self, entry: int) -> None:
        """Remove a settled request. -1 is ignored."""
        if entry < 0:
            return
        ENTRY_STRUCT.pack_into(self._pages, entry_offset(entry), 0, 0.0, 0.0)
        self._free.append(entry)

    def heartbeat(self, now: float) -> None:
        """Record when the requests were last signalled as in progress."""
        _HEARTBEAT.pack_into(self._pages, HEARTBEAT_AT, now)

    def forget_orphans(self) -> None:
        """Remove the orphans, which are back in the queue."""
        for entry in range(self._kept):
            self.remove(entry)
        self._kept = 0
        self.orphans = []

    def close(self) -> None:
        """Release the file; entries that are left stay for a successor."""
        self._pages.close()
        os.close(self._descriptor)


def _rewrite(pages: mmap.mmap, instance_id: str, count: int, orphans: list[Orphan]) -> None:
    pages[:] = bytes(len(pages))
    for entry, orphan in enumerate(orphans):
        _write_entry(pages, entry, orphan.ack_subject.encode(), orphan.until, 0.0)
    name = instance_id.encode()
    pages[HEADER_STRUCT.size : HEADER_STRUCT.size + len(name)] = name
    HEADER_STRUCT.pack_into(pages, 0, MAGIC, 1, count, 0.0, len(name))


def _write_entry(pages: mmap.mmap, entry: int, subject: bytes, started: float, ack_wait: float) -> None:
    offset = entry_offset(entry)
    start = offset + ENTRY_STRUCT.size
    pages[start : start + len(subject)] = subject
    ENTRY_STRUCT.pack_into(pages, offset, len(subject), started, ack_wait)


def open_journal(config: WorkerConfig) -> Journal | None:
    """Open this instance's journal; without a writable folder the worker runs without one."""
    path = config.shared_dir / FILE_NAME
    try:
        config.shared_dir.mkdir(parents=True, exist_ok=True)
        return Journal.open(path, config.instance_id, 2 * config.concurrency + 64)
    except (OSError, JournalError) as error:
        log.warning("no in-flight journal: %s; is %s writable?", error, SHARED_CONFIG_DIR)
        return None
