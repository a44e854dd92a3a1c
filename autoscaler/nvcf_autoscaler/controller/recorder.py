"""From one look at a version to figures, and the spans of what was decided."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from nvcf_autoscaler.controller.queues import QueueState
from nvcf_autoscaler.controller.version_state import Watched
from nvcf_autoscaler.policy.decide import Decision
from nvcf_autoscaler.telemetry.snapshot import Board, Seen, held
from nvcf_otel import instruments, names
from nvcf_otel.histograms import histogram
from nvcf_otel.spans import link
from nvcf_proto.models import FunctionVersion, Instance

_tracer = trace.get_tracer("nvcf_autoscaler")

Counts = tuple[tuple[str, int], ...]


def direction(before: Counts | None, up: int, now: Counts) -> str | None:
    """What a decision does: `up`, `down`, `spill` (as many, of other specifications), None when nothing.

    `before` are the counts decided last; where nothing was, `up` instances are there.
    """
    wanted = sum(count for _, count in now)
    was = up if before is None else sum(count for _, count in before)
    if wanted != was:
        return "up" if wanted > was else "down"
    return None if before is None or before == now else "spill"


def devices_of(instance: Instance, devices: Mapping[str, int]) -> int:
    """GPUs, or the one slot, that an instance holds: as its agent tells, else as its specification says."""
    if instance.visible_devices:
        return instance.visible_devices.count(",") + 1
    return devices.get(instance.specification_id or "", 1)


class Recorder:
    """Tells what the leader sees and decides. `clock` is Unix time in seconds."""

    def __init__(self, board: Board, clock: Callable[[], float] = time.time) -> None:
        self._board = board
        self._clock = clock
        self._decisions = instruments.SCALING_DECISIONS.create(metrics.get_meter("nvcf_autoscaler"))
        self._looks = histogram(instruments.SCALING_DECISION_DURATION).series({})
        self._wake_ups = histogram(instruments.WAKE_UP_DURATION).series({})

    def saw(
        self,
        version: FunctionVersion,
        watched: Watched,
        queue: QueueState,
        instances: Iterable[Instance],
        devices: Mapping[str, int],
        slots: int,
        counts: Counts,
    ) -> None:
        """One look: what is there, and what was decided (`counts`). `devices` are those that one instance of
        a GPU specification takes, `slots` those of running instances.
        """
        now = self._clock()
        everything = list(instances)
        self._board.looked(
            Seen(
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
        seconds, watched.held_until = max(0.0, now - (watched.held_until or now)), now
        if seconds:
            amounts = held(seconds, everything, lambda each: devices_of(each, devices), busy)
            self._board.add_gpu_time(version.id, amounts)

    def gone(self, version_id: str) -> None:
        """Nothing is left of a version."""
        self._board.forget(version_id)

    def looked(self, began: float) -> None:
        """A look that began at `began` is over."""
        self._looks.record(self._clock() - began)

    def decided(
        self, version: FunctionVersion, watched: Watched, decision: Decision, counts: Counts, up: int
    ) -> AbstractContextManager[Span]:
        """Wrap announcing and carrying out a decision that is new: a trace of its own, which links to the
        requests that asked for it.
        """
        told = direction(None if watched.told is None else watched.told[0], up, counts)
        if told is not None:
            self._decisions.add(1, {names.DIRECTION: told})
        attributes: dict[str, str | int] = {
            names.FUNCTION_ID: version.function_id,
            names.FUNCTION_VERSION_ID: version.id,
            names.FUNCTION_NAME: version.name,
            names.DESIRED: decision.total,
            names.UP: up,
            names.MISSING: decision.missing,
            names.REASON: decision.reason,
            **({} if told is None else {names.DIRECTION: told}),
        }
        links = [each for asked_by in watched.asked_by for each in link(asked_by)]
        return _tracer.start_as_current_span(
            names.SCALING_DECISION, context=Context(), attributes=attributes, links=links
        )

    def created(self, watched: Watched) -> None:
        """Creation messages are on their way."""
        if watched.asked_at is not None:
            self._wake_ups.record(self._clock() - watched.asked_at, trace.get_current_span())
        watched.answered()
