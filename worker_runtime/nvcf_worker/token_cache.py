"""The newest worker token, kept across restarts (protocol.md section 5, SHARED_CONFIG_DIR)."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class CachedToken:
    """A worker token of one instance. `expires_at` is a Unix time in seconds, None if unknown."""

    token: str
    expires_at: float | None
    instance_id: str

    def usable(self, instance_id: str, now: float) -> bool:
        """Whether it is this instance's and has not expired."""
        return self.instance_id == instance_id and (self.expires_at is None or self.expires_at > now)


def load(path: Path) -> CachedToken | None:
    """Read the cache; None when there is none or it is unreadable (the environment's token is used then)."""
    try:
        members = json.loads(path.read_text(encoding="utf-8"))
        expiration = members.get("expiration")
        return CachedToken(
            token=str(members["token"]),
            expires_at=None if expiration is None else datetime.fromisoformat(expiration).timestamp(),
            instance_id=str(members.get("instanceId", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def store(path: Path, cached: CachedToken) -> None:
    """Replace the cache file, mode 0600. Raises OSError."""
    members: dict[str, str | None] = {
        "token": cached.token,
        "expiration": None
        if cached.expires_at is None
        else datetime.fromtimestamp(cached.expires_at, UTC).isoformat(),
        "instanceId": cached.instance_id,
    }
    # mkstemp makes the file 0600; the rename replaces the old one as a whole.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(members, file)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
