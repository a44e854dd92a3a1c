"""Metrics of versions: the last snapshot of each, and the GPU time that instances held."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from nvcf_otel import instruments, names
from nvcf_otel.cardinality import OTHER, Bounded
from nvcf_proto.models import Instance, InstanceState

Ids = tuple[str, str]
"""Function id and version id as attributes, or `OTHERS` for those beyond the limit."""
OTHERS: Ids = (OTHER, OTHER)
Kind = tuple[str, str, str]
"""State, cluster and GPU of instances."""


STARTING = "starting"
IDLE = "idle"
BUSY = "busy"
DRAINING = "draining"

GpuTimeKey = tuple[str, str, str]
"""GPU, cluster and phase."""


@dataclass(frozen=True)
class VersionSnapshot:
    """One version at one instant. `queue_age` is in seconds, `desired` by GPU specification."""

    function_id: str
    version_id: str
    name: str
    queued: int = 0
    queue_age: float = 0.0
    in_flight: int = 0
    slots: int = 0
    instances: Mapping[Kind, int] = field(default_factory=dict)
    desired: tuple[tuple[str, int], ...] = ()

    @property
    def is_idle(self) -> bool:
        """Whether the version has no requests and no instances."""
        return not (
            self.queued or self.in_flight or self.instances or any(count for _, count in self.desired)
        )


class Snapshots:
    """The last snapshot of each version; reported only while this replica leads.

    Written on the event loop, observed from any thread. Idle versions take none of the bounded attributes.
    """

    def __init__(self, leads: Callable[[], bool], versions: Bounded | None = None) -> None:
        self._leads = leads
        self._bounded = Bounded() if versions is None else versions
        self._bounded.on_release(self._release)
        self._ids: dict[str, Ids] = {}
        self._seen: dict[str, VersionSnapshot] = {}
        self._gpu_time: defaultdict[tuple[Ids, GpuTimeKey], float] = defaultdict(float)

    def update(self, seen: VersionSnapshot) -> None:
        """Store the snapshot of a version."""
        if seen.is_idle and seen.version_id not in self._ids:
            self._seen.pop(seen.version_id, None)
            return
        self._claim(seen)
        self._seen[seen.version_id] = seen

    def add_gpu_time(self, version_id: str, held: Mapping[GpuTimeKey, float]) -> None:
        """Add the seconds that a version's instances held since its last snapshot."""
        ids = self._ids.get(version_id, OTHERS)
        for key, seconds in held.items():
            self._gpu_time[ids, key] += seconds

    def forget(self, version_id: str) -> None:
        """Drop a version that is gone with all its instances."""
        self._seen.pop(version_id, None)

    def _claim(self, seen: VersionSnapshot) -> None:
        if not seen.is_idle and self._bounded.admits(seen.version_id):
            self._ids.setdefault(seen.version_id, (seen.function_id, seen.version_id))

    def _release(self, version_id: str) -> None:
        ids = self._ids.pop(version_id, None)
        for key in [each for each in self._gpu_time if each[0] == ids]:
            del self._gpu_time[key]

    def register(self) -> None:
        """Create the instruments."""
        meter = metrics.get_meter("nvcf_autoscaler")
        instruments.QUEUE_DEPTH.create(meter, self._sums(lambda seen: seen.queued))
        instruments.QUEUE_AGE.create(meter, self._oldest)
        instruments.REQUESTS_IN_FLIGHT.create(meter, self._sums(lambda seen: seen.in_flight))
        instruments.INSTANCES.create(meter, self._instances)
        instruments.SCALING_DESIRED.create(meter, self._desired)
        instruments.UTILISATION.create(meter, self._utilisation)
        instruments.GPU_TIME.create(meter, self._gpu_seconds)
        instruments.FUNCTION_INFO.create(meter, self._info)

    def _all(self) -> list[tuple[Ids, VersionSnapshot]]:
        if not self._leads():
            return []
        return [(self._ids.get(key, OTHERS), seen) for key, seen in list(self._seen.items())]

    def _sums(
        self, value: Callable[[VersionSnapshot], int]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observed(_: CallbackOptions) -> Iterable[Observation]:
            sums: Counter[Ids] = Counter()
            for ids, seen in self._all():
                sums[ids] += value(seen)
            return [Observation(count, attributes_of(ids)) for ids, count in sums.items()]

        return observed

    def _oldest(self, _: CallbackOptions) -> Iterable[Observation]:
        ages: dict[Ids, float] = {}
        for ids, seen in self._all():
            ages[ids] = max(ages.get(ids, 0.0), seen.queue_age)
        return [Observation(age, attributes_of(ids)) for ids, age in ages.items()]

    def _instances(self, _: CallbackOptions) -> Iterable[Observation]:
        counts: Counter[tuple[Ids, Kind]] = Counter()
        for ids, seen in self._all():
            for kind, count in seen.instances.items():
                counts[ids, kind] += count
        return [
            Observation(
                count,
                {**attributes_of(ids), names.INSTANCE_STATE: state, names.CLUSTER: cluster, names.GPU: gpu},
            )
            for (ids, (state, cluster, gpu)), count in counts.items()
        ]

    def _desired(self, _: CallbackOptions) -> Iterable[Observation]:
        counts: Counter[tuple[Ids, str]] = Counter()
        for ids, seen in self._all():
            for specification, count in seen.desired:
                counts[ids, OTHER if ids == OTHERS else specification] += count
        return [
            Observation(count, {**attributes_of(ids), names.SPECIFICATION: specification})
            for (ids, specification), count in counts.items()
        ]

    def _utilisation(self, _: CallbackOptions) -> Iterable[Observation]:
        used: Counter[Ids] = Counter()
        slots: Counter[Ids] = Counter()
        for ids, seen in self._all():
            used[ids] += min(seen.in_flight, seen.slots)
            slots[ids] += seen.slots
        return [Observation(used[ids] / count, attributes_of(ids)) for ids, count in slots.items() if count]

    def _gpu_seconds(self, _: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(
                seconds,
                {**attributes_of(ids), names.GPU: gpu, names.CLUSTER: cluster, names.PHASE: phase},
            )
            for (ids, (gpu, cluster, phase)), seconds in list(self._gpu_time.items())
        ]

    def _info(self, _: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(1, {**attributes_of(ids), names.FUNCTION_NAME: seen.name})
            for ids, seen in self._all()
            if ids != OTHERS
        ]


def attributes_of(ids: Ids) -> dict[str, str]:
    """Return the metric attributes of a version."""
    return {names.FUNCTION_ID: ids[0], names.FUNCTION_VERSION_ID: ids[1]}


def gpu_seconds(seconds: float, instances: Iterable[Instance], busy: float) -> dict[GpuTimeKey, float]:
    """Return the device seconds that these instances held in the last `seconds`. Pure.

    `busy` is the share (0..1) of the running instances' slots that served a request.
    """
    found: defaultdict[GpuTimeKey, float] = defaultdict(float)
    for each in instances:
        amount = seconds * each.devices
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
