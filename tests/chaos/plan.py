"""What goes wrong, and when: a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Harm(StrEnum):
    """What is done to somebody."""

    KILL_GATEWAY = "gateway killed"
    STOP_GATEWAY = "gateway stopped for a while"
    KILL_WORKER = "worker killed"
    STOP_WORKER = "worker stopped for a while"
    KILL_BROKER = "broker node killed"
    STOP_BROKER = "broker node stopped for a while"
    CUT_BROKER = "all connections of a broker node cut"


# How often each happens, relative to each other.
WEIGHTS = {
    Harm.KILL_GATEWAY: 4,
    Harm.STOP_GATEWAY: 3,
    Harm.KILL_WORKER: 5,
    Harm.STOP_WORKER: 4,
    Harm.KILL_BROKER: 2,
    Harm.STOP_BROKER: 1,
    Harm.CUT_BROKER: 3,
}

# Seconds. A worker is stopped longer than its ack wait now and then, so that its work goes to another.
PAUSES = {Harm.STOP_GATEWAY: (0.3, 6.0), Harm.STOP_WORKER: (0.3, 9.0), Harm.STOP_BROKER: (0.2, 3.0)}
EVERY = (0.5, 3.5)


@dataclass(frozen=True)
class Event:
    """One harm, `after` seconds after the one before; `victim` in [0, 1) chooses among those there are."""

    after: float
    harm: Harm
    victim: float
    pause: float = 0.0


def events(seed: int) -> Iterator[Event]:
    """Endless; each kind once in the first round, so that a short run has seen them all."""
    chance = random.Random(seed)
    first = list(WEIGHTS)
    chance.shuffle(first)
    while True:
        harm = first.pop() if first else chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        low, high = PAUSES.get(harm, (0.0, 0.0))
        yield Event(chance.uniform(*EVERY), harm, chance.random(), chance.uniform(low, high))
