"""The faults of a chaos run and their times, as a pure function of the seed.

Steps of the clock are not among them: the broker is a static Go binary that asks the kernel for the time, so
no preloaded library moves its clock, and a time namespace moves the monotonic clock only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Harm(StrEnum):
    """A kind of fault."""

    KILL_GATEWAY = "gateway killed"
    STOP_GATEWAY = "gateway stopped for a while"
    KILL_WORKER = "worker killed"
    STOP_WORKER = "worker stopped for a while"
    KILL_BROKER = "broker node killed"
    STOP_BROKER = "broker node stopped for a while"
    RESTART_BROKER = "broker node restarted in order"
    KILL_BOTH = "all gateways and a broker node killed together"
    FILL_DISK = "data disk full for a while"
    CUT_BROKER = "all connections of a broker node cut"


# The relative frequency of each fault.
WEIGHTS = {
    Harm.KILL_GATEWAY: 4,
    Harm.STOP_GATEWAY: 3,
    Harm.KILL_WORKER: 5,
    Harm.STOP_WORKER: 4,
    Harm.KILL_BROKER: 2,
    Harm.STOP_BROKER: 1,
    Harm.RESTART_BROKER: 2,
    Harm.KILL_BOTH: 1,
    Harm.FILL_DISK: 1,
    Harm.CUT_BROKER: 3,
}

# Seconds. Some stops of a worker are longer than its ack wait, so that its requests go to another worker.
PAUSES = {
    Harm.STOP_GATEWAY: (0.3, 6.0),
    Harm.STOP_WORKER: (0.3, 9.0),
    Harm.STOP_BROKER: (0.2, 3.0),
    Harm.FILL_DISK: (1.0, 6.0),
}
EVERY = (0.5, 3.5)


@dataclass(frozen=True)
class Event:
    """One fault, `after` seconds after the previous one. `victim` in [0, 1) selects the process."""

    after: float
    harm: Harm
    victim: float
    pause: float = 0.0


def events(seed: int) -> Iterator[Event]:
    """Yield events without end. Each kind comes once at the start, so that a short run has all kinds."""
    chance = random.Random(seed)
    first = list(WEIGHTS)
    chance.shuffle(first)
    while True:
        harm = first.pop() if first else chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        low, high = PAUSES.get(harm, (0.0, 0.0))
        yield Event(chance.uniform(*EVERY), harm, chance.random(), chance.uniform(low, high))
