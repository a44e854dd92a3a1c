"""Records what the controller sees and decides: metrics, and a span per decision."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from nvcf_autoscaler.controller.queues import QueueState
from nvcf_autoscaler.controller.version_state import VersionState
from nvcf_autoscaler.policy.decide import Decision
from nvcf_autoscaler.telemetry.snapshot import Snapshots, VersionSnapshot, gpu_seconds
from nvcf_otel import instruments, names
from nvcf_otel.histograms import histogram
from nvcf_otel.spans import link
from nvcf_proto.models import FunctionVersion, Instance

_tracer = trace.get_tracer("nvcf_autoscaler")

Counts = tuple[tuple[str, int], ...]
"""Desired instances by GPU specification."""


def direction(before: Counts | None, up: int, now: Counts) -> str | None:
    """Return what a decision changes: `up`, `down`, `spill` (as many, of other specifications), or None.

    `before` are the counts decided last; if there are none, `up` instances exist.
    """
    wanted = sum(count for _, count in now)
    was = up if before is None else sum(count for _, count in before)
    if wanted != was:
        return "up" if wanted > was else "down"
    return None if before is None or before == now else "spill"


class Recorder:
    """Records the leader's view of versions. `clock` returns Unix seconds."""

    def __init__(self, snapshots: Snapshots, clock: Callable[[], float] = time.time) -> None:
        self._snapshots = snapshots
        self._clock = clock
        self._decisions = instruments.SCALING_DECISIONS.create(metrics.get_meter("nvcf_autoscaler"))
        self._durations = histogram(instruments.SCALING_DECISION_DURATION).series({})
        self._wake_ups = histogram(instruments.WAKE_UP_DURATION).series({})

    def observed(
        self,
        version: FunctionVersion,
        state: VersionState,
        queue: QueueState,
        instances: Iterable[Instance],
        slots: int,
        counts: Counts,
    ) -> None:
        """Record what exists and what was decided (`counts`).

        `slots` are those of running instances.
        """
        now = self._clock()
        everything = list(instances)
        self._snapshots.update(
            VersionSnapshot(
                function_id=version.function_id,
                version_id=version.id,
                name=version.name,
                queued=queue.queued,
                queue_age=queue.age,
                in_flight=queue.in_flight,
                slots=slots,
                instances=Counter(
                    (each.state.value, each.cluster_id, each.gpu or "CPU") for each in everything
                ),
                desired=counts,
            )
        )
        busy = min(1.0, queue.in_flight / slots) if slots else 0.0
        seconds, state.gpu_time_until = max(0.0, now - (state.gpu_time_until or now)), now
        if seconds:
            amounts = gpu_seconds(seconds, everything, busy)
            self._snapshots.add_gpu_time(version.id, amounts)

    def gone(self, version_id: str) -> None:
        """Forget a version of which nothing is left."""
        self._snapshots.forget(version_id)

    def reconciled(self, began: float) -> None:
        """Record the duration of a reconcile that began at `began`."""
        self._durations.record(self._clock() - began)

    def decision_span(
        self, version: FunctionVersion, state: VersionState, decision: Decision, counts: Counts, up: int
    ) -> AbstractContextManager[Span]:
        """Return a span around a new decision. It links to the requests that caused the decision."""
        change = direction(None if state.announced is None else state.announced[0], up, counts)
        if change is not None:
            self._decisions.add(1, {names.DIRECTION: change})
        attributes: dict[str, str | int] = {
            names.FUNCTION_ID: version.function_id,
            names.FUNCTION_VERSION_ID: version.id,
            names.FUNCTION_NAME: version.name,
            names.DESIRED: decision.total,
            names.UP: up,
            names.MISSING: decision.missing,
            names.REASON: decision.reason,
            **({} if change is None else {names.DIRECTION: change}),
        }
        links = [each for context in state.cold_start_traces for each in link(context)]
        return _tracer.start_as_current_span(
            names.SCALING_DECISION, context=Context(), attributes=attributes, links=links
        )

    def waiting_for_order(self, state: VersionState) -> Callable[[], None] | None:
        """Return what to call when the first instance for requests without one has been ordered.

        It records how long they waited for the creation message. None, if no request waits.
        """
        since, span = state.cold_start_at, trace.get_current_span()
        state.cold_start_handled()
        if since is None:
            return None

        def ordered() -> None:
            nonlocal since
            if since is not None:
                self._wake_ups.record(self._clock() - since, span)
                since = None

        return ordered
