"""The requests that an ended instance still held, from its journal (protocol.md, section 5.7).

The control plane puts them back into the queue. Without this, they are delivered again only after the
consumer's ack wait.
"""

import os
import stat
from pathlib import Path

from nvcf_proto.icms.reports import HELD_REQUESTS
from nvcf_proto.journal import FILE_NAME, read_orphans

# Far more than a worker's slots need. The function can write the file.
_LARGEST = 4 * 1024 * 1024


def held_requests(shared: Path, instance_id: str, version_id: str, wall: float) -> tuple[str, ...]:
    """Return the acknowledgement subjects in the journal of an ended instance. Blocking."""
    return acknowledgement_subjects(_read(shared / FILE_NAME), instance_id, version_id, wall)


def acknowledgement_subjects(
    journal: bytes, instance_id: str, version_id: str, wall: float
) -> tuple[str, ...]:
    """Return the subjects of a journal's requests that are still held. Pure.

    The function's own code can write the journal, so only requests of its version count.
    """
    found = read_orphans(journal, instance_id)
    mine = (each for each in found if each.belongs_to(version_id) and each.still_held(wall))
    return tuple(each.ack_subject for each in mine)[:HELD_REQUESTS]


def _read(path: Path) -> bytes:
    # The function may have put anything there, for example a link, or a pipe without end.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, _LARGEST, 0) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(descriptor)
