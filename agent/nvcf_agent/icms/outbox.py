"""Which calls are due: everything that has changed, and everything again after a while. Pure.

Level-triggered: the calls follow from the present state of requests and instances, so an outage or restart
loses none. Calls of one instance go one after the other, so none overtakes another.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nvcf_agent.icms.reports import Key, Wanted
from nvcf_agent.timings import Timings, growing_pause
from nvcf_proto.models import Record


@dataclass
class _Entry:
    sent: Record | None = None
    """The last body that the control plane has taken."""
    sent_at: float = 0.0
    busy: bool = False
    failures: int = 0
    retry_at: float = 0.0


class Outbox:
    """Remembers what was taken. Times are of a monotonic clock."""

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self._entries: dict[Key, _Entry] = {}

    def due(self, wanted: Mapping[Key, Wanted], now: float) -> list[Key]:
        """Return the calls to make now; each stays busy until `release`."""
        for key in [key for key, entry in self._entries.items() if key not in wanted and not entry.busy]:
            del self._entries[key]
        found = []
        for key, call in wanted.items():
            entry = self._entries.get(key) or self._entries.setdefault(key, _Entry())
            if not entry.busy and self._due_at(entry, call) <= now:
                entry.busy = True
                found.append(key)
        return found

    def next_due(self, wanted: Mapping[Key, Wanted]) -> float:
        """Return when the next call is due; infinite if none is."""
        new = _Entry()
        waiting = ((self._entries.get(key, new), call) for key, call in wanted.items())
        due = (self._due_at(entry, call) for entry, call in waiting if not entry.busy)
        return min(due, default=float("inf"))

    def _due_at(self, entry: _Entry, call: Wanted) -> float:
        if entry.sent is call.body or entry.sent == call.body:
            return max(entry.retry_at, entry.sent_at + self._timings.report_again)
        return entry.retry_at

    def taken(self, key: Key, body: Record, now: float) -> None:
        """Note that the control plane has taken a call."""
        self._entries[key] = _Entry(sent=body, sent_at=now, busy=True)

    def release(self, key: Key) -> None:
        """Note that a call is over; the next one of its request or instance may follow."""
        if key in self._entries:
            self._entries[key].busy = False

    def failed(self, key: Key, now: float, chance: float) -> None:
        """Note that a call is to be made again later."""
        entry = self._entries.setdefault(key, _Entry())
        entry.failures += 1
        times = self._timings
        entry.retry_at = now + growing_pause(times.retry_first, times.retry_longest, entry.failures, chance)

    def repeat(self, request_id: str | None = None) -> None:
        """Make the calls of a request, or all, again, as if the control plane had never heard of it."""
        for key, entry in self._entries.items():
            if request_id in (None, key.request_id):
                entry.sent = None

    def recovered(self) -> None:
        """Try at once what has failed: the control plane answers again."""
        for entry in self._entries.values():
            entry.retry_at = 0.0
