"""The in-flight journal [ext]: the file in which a worker notes the requests that it holds.

It is the file `FILE_NAME` in the shared configuration directory. After a kill the worker that starts again as
the same instance, or the agent that ends the instance for good, reads from it which requests to requeue.

Layout, little-endian: header of `ENTRY` bytes (magic, version, entry count, heartbeat as Unix time,
instance id with its length), then entries of `ENTRY` bytes (length of the subject or 0, start as Unix
time, ack wait in seconds, subject). The length is written last and cleared first.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

FILE_NAME = "inflight"
ENTRY = 512
MARGIN = 1.0
MAGIC = b"NVCFJ1\0\0"
HEADER_STRUCT = struct.Struct("<8sIIdH")
HEARTBEAT_AT = 16
ENTRY_STRUCT = struct.Struct("<Hdd")
MAX_SUBJECT = ENTRY - ENTRY_STRUCT.size
# What is read is published to: nothing but names may be in it.
_SUBJECT = re.compile(rb"\$JS\.ACK(\.[A-Za-z0-9_-]+)+")


@dataclass(frozen=True)
class Orphan:
    """A request that the killed worker held; at the Unix time `until` the broker redelivers it itself."""

    ack_subject: str
    until: float

    def still_held(self, now: float) -> bool:
        """Return whether the broker has not redelivered the request yet, so that a nak is right."""
        return now < self.until - MARGIN

    def belongs_to(self, version_id: str) -> bool:
        """Return whether it is a request of that function version, by the stream that its subject names."""
        # $JS.ACK.STREAM.… of older brokers, $JS.ACK.DOMAIN.ACCOUNT.STREAM.… of newer ones.
        parts = self.ack_subject.split(".")
        place = {9: 2, 11: 4, 12: 4}.get(len(parts))
        return (
            place is not None and parts[place].startswith("rq_") and parts[place].endswith(f"_{version_id}")
        )


def held_by(ack_subject: str, version_id: str) -> bool:
    """Return whether text acknowledges the delivery of a request of that function version."""
    return (
        len(ack_subject) <= MAX_SUBJECT
        and _SUBJECT.fullmatch(ack_subject.encode()) is not None
        and Orphan(ack_subject, 0.0).belongs_to(version_id)
    )


def entry_offset(entry: int) -> int:
    """Return where an entry begins in the file."""
    return (entry + 1) * ENTRY


def read_orphans(data: bytes, instance_id: str) -> list[Orphan]:
    """Return the entries of this instance's journal; none for another instance's or an unreadable file."""
    if len(data) < ENTRY:
        return []
    magic, version, count, heartbeat, length = HEADER_STRUCT.unpack_from(data)
    if magic != MAGIC or version != 1:
        return []
    if data[HEADER_STRUCT.size : HEADER_STRUCT.size + length] != instance_id.encode():
        return []
    found = []
    for entry in range(min(count, len(data) // ENTRY - 1)):
        offset = entry_offset(entry)
        size, started, ack_wait = ENTRY_STRUCT.unpack_from(data, offset)
        if not 0 < size <= MAX_SUBJECT:
            continue
        subject = data[offset + ENTRY_STRUCT.size : offset + ENTRY_STRUCT.size + size]
        if _SUBJECT.fullmatch(subject):
            found.append(Orphan(subject.decode(), max(started, heartbeat) + ack_wait))
    return found
