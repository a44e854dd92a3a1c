"""Things that are gone for good, as against not seen for a moment. Pure."""

from collections.abc import Hashable


class Absences:
    """Since when which thing has been missing without a break; times in seconds of a monotonic clock."""

    def __init__(self, gone_after: float) -> None:
        self._gone_after = gone_after
        self._since: dict[Hashable, float] = {}

    def lasts(self, thing: Hashable, missing: bool, now: float) -> bool:
        """Note whether it is missing now; True once it has been so for long enough."""
        if not missing:
            self._since.pop(thing, None)
            return False
        return now - self._since.setdefault(thing, now) >= self._gone_after

    def drop(self, instance_id: str) -> None:
        """Forget what is noted about an instance."""
        for kind in ("version", "record"):
            self._since.pop((kind, instance_id), None)
