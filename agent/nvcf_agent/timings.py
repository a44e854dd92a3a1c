"""The agent's intervals and pauses, in seconds (protocol.md, sections 6.2 and 6.5)."""

from dataclasses import dataclass, fields, replace
from typing import Self

from nvcf_proto.icms.names import CREATION_ACK_WAIT_SECONDS

_IN_PROGRESS_SHARE = 0.7


@dataclass(frozen=True)
class Timings:
    """Intervals and pauses. Tests scale all of them down."""

    retry_first: float = 3.0
    retry_longest: float = 60.0
    unknown_request: float = 300.0
    """How long the answer 404 counts as "not yet"."""
    refused: float = 60.0
    """How long an agent without instances goes on when it is refused at its start."""
    report_again: float = 300.0
    report_all_again: float = 30.0
    """Least time between two reports of everything that the control plane asked for."""
    reconcile: float = 300.0
    prefetch: float = 30.0
    prefetch_unknown: float = 3600.0
    """How long a control plane that knows no prefetching is not asked again."""
    register_again: float = 3600.0
    in_progress: float = CREATION_ACK_WAIT_SECONDS * _IN_PROGRESS_SHARE
    room_first: float = 1.0
    room_longest: float = 15.0
    """Pause before a creation that met no free capacity comes again."""

    def scaled(self, factor: float) -> Self:
        """Return these times, each multiplied by `factor`."""
        return replace(self, **{each.name: getattr(self, each.name) * factor for each in fields(self)})


def growing_pause(first: float, longest: float, failures: int, chance: float) -> float:
    """Return the pause after the `failures`-th failure in a row. `chance` in [0, 1) is the jitter."""
    whole = min(longest, first * 2.0 ** min(failures - 1, 32))
    return whole * (0.5 + chance / 2)
