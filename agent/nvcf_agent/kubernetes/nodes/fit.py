"""Which nodes have room for instances, as far as the scheduler's choices are known. Pure.

A share whose node is known takes its GPUs there. The others are not scheduled yet, or are several pods; they
are placed where they leave the least rest, the largest first.
"""

import heapq
from collections.abc import Iterable, Mapping

from nvcf_agent.state.inventory import Share


def free_gpus(nodes: Mapping[str, int], taken: Iterable[Share], *, named: bool = True) -> dict[str, int]:
    """Return the free GPUs of each node, of `nodes` with their numbers, after all shares.

    `named`: a share of a node that is not among them takes nothing from these. Otherwise nodes have names of
    their own here, and no share's node counts.
    """
    free = dict(nodes)
    unplaced = []
    for share in taken:
        if not share.node or not named:
            unplaced.append(share)
        elif share.node in free:
            free[share.node] = max(0, free[share.node] - share.gpus)
    for share in sorted(unplaced, key=lambda each: -each.gpus):
        if not take(free, share.gpus, share.nodes):
            _take_anything(free, share.gpus * share.nodes)
    return free


def take(free: dict[str, int], gpus: int, nodes: int = 1) -> bool:
    """Take `gpus` of each of `nodes` nodes, those with the least rest. Return False if there is no room."""
    fitting = heapq.nsmallest(nodes, ((room, name) for name, room in free.items() if room >= gpus))
    if len(fitting) < nodes:
        return False
    for _, name in fitting:
        free[name] -= gpus
    return True


def _take_anything(free: dict[str, int], gpus: int) -> None:
    """Count a share that fits no node against whatever is left: it was accepted, and waits for room."""
    for name in sorted(free, key=lambda each: -free[each]):
        taken = min(gpus, free[name])
        free[name] -= taken
        gpus -= taken
