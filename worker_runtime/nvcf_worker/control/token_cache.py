"""The newest worker token, kept across restarts (protocol.md section 5, SHARED_CONFIG_DIR).

The members are those of OAuth 2 (RFC 6749 section 5.1), with the time of expiry as `expiry`, as NVIDIA's
containers beside a worker read and write them; `instanceId` is ours.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

# Of what can be written as a date.
_LAST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True)
class CachedToken:
    """A worker token of one instance. `expires_at` is a Unix time in seconds, None if unknown; so is
    `instance_id`, of a file that another container of this instance wrote."""

    token: str
    expires_at: float | None
    instance_id: str | None

    def usable(self, instance_id: str, now: float) -> bool:
        """Whether it is this instance's and has not expired."""
        return self.instance_id in (None, instance_id) and (self.expires_at is None or self.expires_at > now)


def load(path: Path) -> CachedToken | None:
    """Read the cache; None when there is none or it is unreadable (the environment's token is used then)."""
    try:
        members = json.loads(path.read_text(encoding="utf-8"))
        expiry, instance_id = members.get("expiry"), members.get("instanceId")
        return CachedToken(
            token=str(members["access_token"]),
            expires_at=None if expiry is None else _unix_time(datetime.fromisoformat(expiry)),
            instance_id=None if instance_id is None else str(instance_id),
        )
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError):
        return None


def _unix_time(moment: datetime) -> float | None:
    # Go's zero time, which it writes for one that is not known.
    return None if moment.year == 1 else moment.timestamp()


def store(path: Path, cached: CachedToken) -> None:
    """Replace the cache file, mode 0600. Raises OSError."""
    members = {"access_token": cached.token, "token_type": "Bearer"}
    if cached.expires_at is not None and 0 <= cached.expires_at <= _LAST:
        members["expiry"] = datetime.fromtimestamp(cached.expires_at, UTC).isoformat()
    if cached.instance_id is not None:
        members["instanceId"] = cached.instance_id
    # mkstemp makes the file 0600; the rename replaces the old one as a whole.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(members, file)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
