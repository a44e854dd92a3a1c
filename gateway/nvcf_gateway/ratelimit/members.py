"""The gateway replicas that are alive, and which of them counts the calls of a version. Pure."""

from __future__ import annotations

import hashlib

LIFE_SECONDS = 3.5
"""How long a replica counts as alive after its last heartbeat."""
MAX_CACHED_OWNERS = 100_000


def owner_of(key: str, members: frozenset[str]) -> str:
    """Return the member that owns `key`, by rendezvous hashing: few keys move when members change."""

    def weight(member: str) -> tuple[bytes, str]:
        return hashlib.blake2b(f"{key} {member}".encode(), digest_size=8).digest(), member

    return max(members, key=weight)


class Members:
    """The replicas as this one sees them. Times are monotonic seconds and passed in."""

    def __init__(self, own: str) -> None:
        self.own = own
        self._last_seen: dict[str, float] = {}
        self._alive = frozenset((own,))
        self._owners: dict[str, str] = {}

    def seen(self, member: str, now: float) -> bool:
        """Record a heartbeat; return True if the member is new."""
        if member == self.own:
            return False
        new = member not in self._last_seen
        self._last_seen[member] = now
        if new:
            self._changed()
        return new

    def remove(self, member: str) -> None:
        """Remove a member that has left or does not respond; its next heartbeat brings it back."""
        if self._last_seen.pop(member, None) is not None:
            self._changed()

    def expire(self, now: float) -> None:
        """Remove members without a recent heartbeat."""
        for member, seen in list(self._last_seen.items()):
            if now - seen > LIFE_SECONDS:
                self.remove(member)

    def alive(self) -> frozenset[str]:
        """Return all members, this one included."""
        return self._alive

    def owner(self, key: str) -> str:
        """Return the member that owns `key`."""
        found = self._owners.get(key)
        if found is None:
            if len(self._owners) > MAX_CACHED_OWNERS:
                self._owners.clear()
            found = self._owners[key] = owner_of(key, self._alive)
        return found

    def _changed(self) -> None:
        self._alive = frozenset((self.own, *self._last_seen))
        self._owners.clear()
