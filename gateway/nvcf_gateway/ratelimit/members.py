"""Which gateway replicas there are, and which of them counts a version's calls. Pure."""

from __future__ import annotations

import hashlib

LIFE_SECONDS = 3.5
"""How long a replica that gives no sign of life is still taken for alive."""


def owner_of(key: str, members: frozenset[str]) -> str:
    """The member that owns `key`, by rendezvous hashing: few keys move when members change."""

    def weight(member: str) -> tuple[bytes, str]:
        return hashlib.blake2b(f"{key} {member}".encode(), digest_size=8).digest(), member

    return max(members, key=weight)


class Members:
    """The replicas as this one sees them. Times are monotonic seconds and passed in."""

    def __init__(self, own: str) -> None:
        self.own = own
        self._heard: dict[str, float] = {}
        self._alive = frozenset((own,))
        self._owners: dict[str, str] = {}

    def heard(self, member: str, now: float) -> bool:
        """A sign of life; True if the member was not known."""
        if member == self.own:
            return False
        new = member not in self._heard
        self._heard[member] = now
        if new:
            self._changed()
        return new

    def gone(self, member: str) -> None:
        """The member has left or does not answer; its next sign of life brings it back."""
        if self._heard.pop(member, None) is not None:
            self._changed()

    def expire(self, now: float) -> None:
        """Forget members that have been silent for too long."""
        for member, heard in list(self._heard.items()):
            if now - heard > LIFE_SECONDS:
                self.gone(member)

    def alive(self) -> frozenset[str]:
        """All members, this one included."""
        return self._alive

    def owner(self, key: str) -> str:
        """The member that owns `key`."""
        found = self._owners.get(key)
        if found is None:
            if len(self._owners) > 100_000:
                self._owners.clear()
            found = self._owners[key] = owner_of(key, self._alive)
        return found

    def _changed(self) -> None:
        self._alive = frozenset((self.own, *self._heard))
        self._owners.clear()
