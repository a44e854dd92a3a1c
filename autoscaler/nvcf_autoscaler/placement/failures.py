"""Back-off after failed instances: clusters to avoid for a while, and when to try again. Pure.

Records of failed instances stay for some minutes, with the category of the failure. Times are Unix seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from nvcf_proto.icms.causes import CHART_PULL, INVALID_CHART
from nvcf_proto.models import Instance, InstanceState

# How long a cluster gets no instance of a version after it refused or lost one, by category.
# An unhealthy instance had served: that is a matter of the place, and says nothing about starts.
# A chart is refused by a cluster's rules until somebody changes the deployment. One that cannot be fetched is
# tried again: somebody may mend the registry or the login.
# Whoever is over capacity refuses an order silently, and takes no others for up to 150 s.
AVOID_SECONDS = {
    "capacity": 2.0,
    "unsupported": 60.0,
    INVALID_CHART: math.inf,
    CHART_PULL: 10.0,
    "lost": 20.0,
    "unhealthy": 20.0,
    "admission": 20.0,
    "maintenance": 60.0,
    "unacknowledged": 30.0,
}
LONGEST_AVOIDED = 240.0
UNACKNOWLEDGED = "unacknowledged"
_OF_CHARTS = (INVALID_CHART, CHART_PULL)
_DOUBLED = (UNACKNOWLEDGED, CHART_PULL)
FIRST_WAIT = 1.0
LONGEST_WAIT = 120.0


@dataclass(frozen=True)
class Failures:
    """`avoided`: clusters, until when and why. `retry_at`: no new instance before then; `text` says why."""

    avoided: dict[str, tuple[float, str]] = field(default_factory=dict)
    retry_at: float = 0.0
    text: str = ""


def assess_failures(now: float, instances: Iterable[Instance], changed_at: float = 0.0) -> Failures:
    """Return the back-off that follows from a version's records.

    A function that does not start is retried after a wait that doubles with each failure since an instance
    was last ready. A cluster is avoided for longer with each order that it does not acknowledge and each
    chart that it cannot fetch, and for good once it has refused the chart of the deployment as it is since
    `changed_at`.
    """
    everything = list(instances)
    served = max((each.ready_at or 0.0 for each in everything), default=0.0)
    avoided: dict[str, tuple[float, str]] = {}
    repeated = Counter((each.cluster_id, each.category) for each in everything)
    crashes: list[Instance] = []
    for each in everything:
        if each.state is not InstanceState.FAILED:
            continue
        # Agents of an earlier release write the category only into the reason.
        category = each.category or (each.reason or "").partition(":")[0]
        if category in _OF_CHARTS and each.created_at < changed_at:
            continue
        if category not in AVOID_SECONDS or _vanished_at_start(each):
            crashes.append(each)
        if category not in AVOID_SECONDS:
            continue
        seconds = AVOID_SECONDS[category]
        if category in _DOUBLED:
            times = max(repeated[each.cluster_id, category], 1)
            seconds = min(LONGEST_AVOIDED, seconds * 2.0 ** min(times - 1, 8))
        until = each.updated_at + seconds
        if until > max(now, avoided.get(each.cluster_id, (0.0, ""))[0]):
            avoided[each.cluster_id] = (until, each.reason or category)
    fresh = [each for each in crashes if each.updated_at > served]
    if not fresh:
        return Failures(avoided)
    last = max(fresh, key=lambda each: each.updated_at)
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(len(fresh) - 1, 16))
    retry_at = last.updated_at + wait
    if retry_at <= now:
        return Failures(avoided)
    reason = (last.reason or "no reason known").partition("\n")[0]
    text = f"{len(fresh)} failed to start, the next attempt is in {retry_at - now:.0f} s ({reason})"
    return Failures(avoided, retry_at, text)


def _vanished_at_start(instance: Instance) -> bool:
    """Return whether its agent reported a start that ended without a reason.

    NVIDIA's agent says so of what it cannot translate, for example an unknown instance type. What this
    process gave up, because a cluster was silent, has an older last report.
    """
    reported = instance.reported_at
    return (
        instance.category == "lost"
        and instance.ready_at is None
        and reported is not None
        and reported >= instance.updated_at
    )
