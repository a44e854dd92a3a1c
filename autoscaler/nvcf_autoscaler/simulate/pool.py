"""GPUs that simulated functions share."""

from __future__ import annotations


class Pool:
    """GPUs that functions share, by specification id. A specification without an entry has no limit."""

    def __init__(self, gpus: dict[str, int]) -> None:
        self.free = dict(gpus)

    def room(self, specification: str, gpus: int) -> int | None:
        """Return how many more instances fit; None if there is no limit."""
        free = self.free.get(specification)
        return None if free is None else free // gpus

    def acquire(self, specification: str, gpus: int) -> bool:
        """Reserve an instance's GPUs. Return False if there are too few."""
        free = self.free.get(specification)
        if free is None:
            return True
        if free < gpus:
            return False
        self.free[specification] = free - gpus
        return True

    def release(self, specification: str, gpus: int) -> None:
        """Release an instance's GPUs."""
        if specification in self.free:
            self.free[specification] += gpus
