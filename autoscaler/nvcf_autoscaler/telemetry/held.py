"""What instances hold, by what they do with it: the figure behind a bill. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from nvcf_proto.models import Instance, InstanceState

STARTING = "starting"
IDLE = "idle"
BUSY = "busy"
DRAINING = "draining"

Held = tuple[str, str, str]
"""GPU, cluster and phase."""


def held(
    seconds: float, instances: Iterable[Instance], devices: Callable[[Instance], int], busy: float
) -> dict[Held, float]:
    """Device seconds that these instances held in the last `seconds`.

    `busy` is the share (0..1) of running instances' slots that held a request.
    """
    found: defaultdict[Held, float] = defaultdict(float)
    for each in instances:
        amount = seconds * devices(each)
        gpu, cluster = each.gpu or "CPU", each.cluster_id
        if each.state in (InstanceState.COMPLETED, InstanceState.FAILED):
            continue
        if each.draining_since is not None or each.state is InstanceState.TERMINATING:
            found[gpu, cluster, DRAINING] += amount
        elif each.state is InstanceState.RUNNING:
            found[gpu, cluster, BUSY] += amount * busy
            found[gpu, cluster, IDLE] += amount * (1.0 - busy)
        else:
            found[gpu, cluster, STARTING] += amount
    return found
