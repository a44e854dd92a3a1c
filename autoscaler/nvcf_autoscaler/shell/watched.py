"""What is remembered of one version between looks. Lost with the process: that costs only efficiency."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvcf_autoscaler.memory import Memory
from nvcf_autoscaler.observation import Activity
from nvcf_autoscaler.shell.demand import Arrivals, GatewayTime, SlotTime

# A version that is woken again and again is looked at this often.
SHORTEST_BETWEEN_LOOKS = 0.05


@dataclass
class Watched:
    """Times are Unix seconds.

    `told` is what was last announced. `short`: some instances found no room. `refusal` and `trouble` are
    the last words about that, and about settings or starts that fail.
    """

    known_since: float = 0.0
    arrivals: Arrivals = field(default_factory=Arrivals)
    gateways: GatewayTime = field(default_factory=GatewayTime)
    slots: SlotTime = field(default_factory=SlotTime)
    memory: Memory = field(default_factory=Memory)
    activity: Activity = field(default_factory=Activity)
    startups: dict[str, float] = field(default_factory=dict)
    woken: bool = False
    next_look: float = 0.0
    looked_at: float = 0.0
    undeployed_since: float | None = None
    told: tuple[tuple[tuple[str, int], ...], int] | None = None
    short: bool = False
    refusal: str = ""
    trouble: str = ""

    @property
    def due_at(self) -> float:
        """When the version is to be looked at."""
        return min(self.next_look, self.looked_at + SHORTEST_BETWEEN_LOOKS) if self.woken else self.next_look
