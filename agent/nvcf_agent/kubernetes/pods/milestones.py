"""The parts of a cold start, as a pod's status and events show them. Pure."""

from collections.abc import Mapping

from nvcf_agent.kubernetes.pods import status
from nvcf_agent.kubernetes.pods.status import Pod

CREATED = "pod created"
SCHEDULED = "scheduled"
INITIALIZED = "initialized"
STARTED = "container started"
CONNECTED = "worker started"
READY = "ready"
ORDER = (CREATED, SCHEDULED, INITIALIZED, STARTED, CONNECTED, READY)

# Time stamps of a pod have whole seconds. Whoever looks at once knows it better.
_COARSE = 1.5


def milestones(pod: Pod, worker: str) -> dict[str, float]:
    """Return the parts that a start has passed, and when (Unix time). `worker` is the worker's container."""
    metadata = pod["metadata"]
    found = {CREATED: status.seconds(metadata.get("creationTimestamp"))}
    for name, kind in ((SCHEDULED, "PodScheduled"), (INITIALIZED, "Initialized"), (READY, "Ready")):
        seen = status.condition(pod, kind)
        if seen is not None and seen.holds:
            found[name] = seen.since
    running = [each for each in status.containers(pod) if each.runs_along and not each.is_init]
    if running and all(each.running_since is not None for each in running):
        found[STARTED] = max(each.running_since or 0.0 for each in running)
    started = (pod.get("status") or {}).get("containerStatuses") or ()
    if any(each["name"] == worker and each.get("started") for each in started) and STARTED in found:
        # The status does not say when the startup probe passed.
        found[CONNECTED] = None
    return {name: -1.0 if value is None else value for name, value in found.items()}


def added(known: Mapping[str, float], seen: Mapping[str, float], now: float) -> dict[str, float]:
    """Return what is new, in order, with the moment of a look that came soon after it."""
    result: dict[str, float] = {}
    floor = max(known.values(), default=0.0)
    for name in ORDER:
        if name not in seen or name in known:
            continue
        said = seen[name]
        at = now if said < 0 or 0 <= now - said < _COARSE else said
        floor = max(floor, at)
        result[name] = floor
    return result
