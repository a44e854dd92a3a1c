"""A request that JetStream delivered to this worker, until it is acknowledged."""

from __future__ import annotations

from nvcf_worker.function.cancellation import CancelScope
from nvcf_worker.message import Work


class Delivery:
    """One request in flight. `work.ack_subject` belongs to its newest delivery."""

    __slots__ = ("failed_signals", "holds_slot", "journal_slot", "scope", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.scope = CancelScope()
        self.holds_slot = True
        self.journal_slot = -1
        # In-progress signals in a row that could not be sent.
        self.failed_signals = 0
