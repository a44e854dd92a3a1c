"""How many instances fit into a cluster for certain, although nobody knows what is on which node. Pure.

An instance needs all its GPUs on one node, but agents only say how many GPUs the nodes have. The scheduler of
the cluster chooses the nodes. So the worst choice counts: the one that leaves the fewest whole instances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def guaranteed_room(
    size: int, placed: Sequence[int], units: int, *, total: int, node_gpus: int = 0, nodes: int = 0
) -> int:
    """Return how many instances of `size` GPUs fit, however the others are placed. Never too many.

    `placed` are the sizes of the instances there, `units` the GPUs that something unknown holds. The cluster
    has `total` GPUs on `nodes` nodes with at most `node_gpus` each. Without nodes, it is one node.
    """
    size = max(1, size)
    if node_gpus <= 0 or nodes <= 1:
        return max(0, total - sum(placed) - units) // size
    if size > node_gpus:
        # An instance on several nodes takes them whole.
        whole = guaranteed_room(node_gpus, placed, units, total=total, node_gpus=node_gpus, nodes=nodes)
        return whole // math.ceil(size / node_gpus)
    on_one: list[int] = []
    for each in placed:
        several, rest = divmod(each, node_gpus) if each > node_gpus else (0, each)
        on_one += [node_gpus] * several + ([rest] if rest else [])
    # What smaller nodes lack is anywhere, like GPUs that something unknown holds. It is only a number here:
    # an agent may say billions.
    single = max(0, units) + max(0, nodes * node_gpus - total)
    free = nodes * (node_gpus // size) - _most_lost(size, node_gpus, nodes, on_one, single)
    return max(0, min(free, (total - sum(placed) - units) // size))


def _most_lost(size: int, node_gpus: int, nodes: int, placed: Sequence[int], single: int) -> int:
    """Return a bound of the instances of `size` that the placed ones and `single` GPUs can keep out.

    A node of G = q*size + spare GPUs that holds L of them has lost ceil((L - spare) / size) of its q
    instances. For whole multiples of `size` that is exact. The rest touches at most one node each, and loads
    are multiples of their greatest common divisor, which bounds what rounding can waste on each of them.
    """
    spare = node_gpus % size
    whole = sum(each // size for each in placed if each % size == 0)
    rest = [each for each in placed if each % size]
    if size == 1:
        return whole + single
    if not rest and not single:
        return whole
    step = 1 if single else math.gcd(size, spare, *rest)
    touched = min(nodes, len(rest) + single)
    shared = (sum(rest) + single + touched * (size - step - spare)) // size
    apart = sum(math.ceil(each / size) for each in rest) + single
    return whole + min(apart, max(0, shared))
