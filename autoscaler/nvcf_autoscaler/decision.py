"""What a policy answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nvcf_autoscaler.memory import Memory


class Counted(NamedTuple):
    """A number with its noun, for people: `1 more slot`, `4 more slots`."""

    number: int
    noun: str

    def __str__(self) -> str:
        return f"{self.number} {self.noun}{'' if self.number == 1 else 's'}"


# A sentence with places for values, and the values: put together only when somebody reads it.
Part = tuple[str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Desired:
    """How many instances of one GPU specification there should be (running and starting together)."""

    specification_id: str
    instances: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Desired instances in preferred order, the new memory, and why.

    Nothing but a new event (a request that finds no free slot, the first one after an idle time, an
    instance that became ready or was lost) changes the decision before `recheck_at`.
    `missing` is how many instances found no capacity. `parts` are the facts behind `reason`. `needed` is how
    many instances of the preferred specification the demand asks for, without those only kept.
    """

    desired: tuple[Desired, ...]
    memory: Memory
    recheck_at: float
    missing: int
    parts: tuple[Part, ...]
    needed: int = 0

    @property
    def total(self) -> int:
        """Desired instances of all specifications."""
        return sum(part.instances for part in self.desired)

    @property
    def reason(self) -> str:
        """Why, in words, for people: `3 instances: ...`."""
        texts = "; ".join(text.format(*values) for text, values in self.parts)
        return f"{Counted(self.total, 'instance')}: {texts}"
