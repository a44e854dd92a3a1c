"""Feature flags, in NVIDIA's words. Pure."""

from collections.abc import Iterable
from enum import StrEnum


class Flag(StrEnum):
    """The flags that this agent acts on. Others are accepted, and change nothing."""

    MULTI_NODE = "MultiNodeWorkloads"
    AUTO_PURGE = "AutoPurgeDegradedWorkers"
    ENFORCE_FUNCTION_LIMITS = "EnforceContainerFunctionResourceLimits"
    API_ACCESS = "AllowWorkloadKubernetesAPIAccess"
    CORDON = "CordonMaintenance"
    CORDON_AND_DRAIN = "CordonAndDrainMaintenance"
    PASSTHROUGH = "PassthroughGPUEnabled"


_ON = frozenset((Flag.MULTI_NODE, Flag.AUTO_PURGE))


def enabled(values: Iterable[str]) -> frozenset[str]:
    """Return the names of all flags that are on; of two words about one, the last counts."""
    found: set[str] = set(_ON)
    for value in values:
        name = value.strip()
        if name.startswith("-"):
            found.discard(name[1:])
        elif name:
            found.add(name)
    return frozenset(found)
