"""Discrete-event simulation of functions. Workers pull: a free slot takes the oldest request at once.

A function's events are arrivals (a sorted array), completions, ready instances and requests of callers that
waited for an answer (one heap), and the next decision (one number). A rare function therefore costs almost
nothing. Functions interact only through a shared pool of GPUs; without one, each runs to its end by itself.
"""

from __future__ import annotations

from array import array
from collections import deque
from heapq import heappop, heappush

from nvcf_autoscaler.policy.observation import Activity, Observation, SpecificationObservation
from nvcf_autoscaler.simulate.model import FunctionResult, SimulatedFunction
from nvcf_autoscaler.simulate.policies.base import NEVER, Policy
from nvcf_autoscaler.simulate.pool import Pool

# Wake-ups closer together than this lead to one decision.
_WAKE_SPACING = 0.5
_REMEMBERED_STARTUPS = 20
STARTING, RUNNING, DRAINING, GONE = range(4)


class _Instance:
    __slots__ = ("busy", "busy_since", "created", "ready", "slots", "spec", "state")

    def __init__(self, spec: int, slots: int, created: float) -> None:
        self.spec = spec
        self.slots = slots
        self.created = created
        self.ready = NEVER
        self.busy = 0
        self.busy_since = 0.0
        self.state = STARTING


class FunctionRun:
    """One function under one policy. Call `advance` until it returns infinity, then `result`."""

    def __init__(
        self,
        function: SimulatedFunction,
        policy: Policy,
        seed: int,
        pool: Pool | None = None,
        *,
        trace: bool = False,
    ) -> None:
        self._function = function
        self._specs = function.specifications
        self._run = policy.start(function)
        self._reaction = policy.reaction
        self._edge = policy.wake_after_idle
        self._pool = pool
        self._startups = [
            spec.startup.draw(seed, function.name, spec.id, "startup") for spec in function.specifications
        ]
        self._came = array("d", function.arrivals)
        self._arrivals = self._came[: function.callers or None]
        self._arrivals.append(NEVER)
        self._next = self._arrived = 0
        self._heap: list[tuple[float, int, _Instance | int]] = []
        self._sequence = 0
        self._free: deque[_Instance] = deque()
        self._queue: deque[int] = deque()
        self._alive: list[list[_Instance]] = [[] for _ in self._specs]
        self._running = [0] * len(self._specs)
        self._slots = 0
        self._in_flight = 0
        self._completions = 0
        self._clock = 0.0
        self._busy_seconds = self._demand_seconds = self._slot_seconds = 0.0
        self._idle_since: float | None = 0.0
        self._busy_since: float | None = None
        self._idle_before = 0.0
        self._recent_startups: tuple[float, ...] = ()
        self._decide_at = 0.0
        self._decided_at = -NEVER
        self._wake_queued = False
        self._waits = array("d", [NEVER]) * len(function.arrivals)
        self._cold = 0
        self._gpu_seconds = self._starting_seconds = self._serving_seconds = 0.0
        self._most = [0] * len(self._specs)
        self._starts = self._stops = self._refused = self._decisions = 0
        self._changes: list[tuple[float, int]] | None = [] if trace else None

    @property
    def next_event(self) -> float:
        """Instant of the next event; infinity when the function has ended."""
        first = self._heap[0][0] if self._heap else NEVER
        instant = min(first, self._arrivals[self._next], self._decide_at)
        if instant > self._function.horizon and not self._unfinished:
            return NEVER
        return instant

    @property
    def _unfinished(self) -> bool:
        return bool(self._queue) or self._in_flight > 0 or self._arrived < len(self._came)

    def advance(self, until: float) -> float:
        """Process all events up to and including `until`. Return the instant of the next one."""
        heap = self._heap
        arrivals = self._arrivals
        horizon = self._function.horizon
        while True:
            completion = heap[0][0] if heap else NEVER
            arrival = arrivals[self._next]
            instant = completion if completion <= arrival else arrival
            if self._decide_at < instant:
                instant = self._decide_at
            if instant > until or instant == NEVER:
                return instant
            if instant > horizon and not self._unfinished:
                return NEVER
            passed = instant - self._clock
            if passed > 0:
                self._busy_seconds += self._in_flight * passed
                self._demand_seconds += (self._in_flight + len(self._queue)) * passed
                self._slot_seconds += self._slots * passed
                self._clock = instant
            if completion <= instant:
                instance = heappop(heap)[2]
                if isinstance(instance, int):
                    self._came[instance] = instant
                    self._arrive(instant, instance)
                elif instance.state == STARTING:
                    self._ready(instant, instance)
                elif instance.state != GONE:
                    self._complete(instant, instance)
            elif arrival <= instant:
                self._next += 1
                self._arrive(instant, self._next - 1)
            else:
                self._decide(instant)

    def release(self) -> None:
        """Release what the function still holds, since other functions may go on."""
        if self._pool:
            for instances, spec in zip(self._alive, self._specs, strict=True):
                for _ in instances:
                    self._pool.release(spec.id, spec.gpus)

    def result(self) -> FunctionResult:
        """Return the result after `advance` returned infinity. Remaining instances cost until the horizon."""
        function = self._function
        end = max(self._clock, function.horizon)
        for instances in self._alive:
            for instance in instances:
                self._account(end, instance)
        return FunctionResult(
            name=function.name,
            family=function.family,
            waits=self._waits,
            cold=self._cold,
            gpu_seconds=self._gpu_seconds,
            work_seconds=self._busy_seconds,
            starts=self._starts,
            stops=self._stops,
            refused=self._refused,
            wait_slo=function.wait_slo,
            decisions=self._decisions,
            changes=tuple(self._changes or ()),
            starting_seconds=self._starting_seconds,
            serving_seconds=self._serving_seconds,
        )

    def _arrive(self, instant: float, index: int) -> None:
        self._arrived += 1
        if self._idle_since is not None:
            self._idle_before = instant - self._idle_since if self._busy_since is not None else 0.0
            if instant - self._idle_since >= self._edge:
                self._wake(instant)
            self._busy_since = instant
            self._idle_since = None
        instance = self._free_instance()
        if instance is not None:
            self._serve(instant, index, instance)
            if instance.busy < instance.slots:
                self._free.append(instance)
            return
        self._queue.append(index)
        if self._wake_queued:
            self._wake(instant)

    def _free_instance(self) -> _Instance | None:
        free = self._free
        while free:
            instance = free.popleft()
            if instance.state == RUNNING and instance.busy < instance.slots:
                return instance
        return None

    def _serve(self, instant: float, index: int, instance: _Instance) -> None:
        came = self._came[index]
        self._waits[index] = instant - came
        if instant > came and instance.ready > came:
            self._cold += 1
        if instance.busy == 0:
            instance.busy_since = instant
        instance.busy += 1
        self._in_flight += 1
        self._sequence += 1
        done = instant + self._function.durations[index]
        heappush(self._heap, (done, self._sequence, instance))
        if self._function.callers and index + self._function.callers < len(self._came):
            self._sequence += 1
            follower = index + self._function.callers
            heappush(self._heap, (done + self._pause(index, follower), self._sequence, follower))

    def _pause(self, index: int, follower: int) -> float:
        """Return how long a caller waits between an answer and its next request."""
        function = self._function
        return max(0.0, function.arrivals[follower] - function.arrivals[index] - function.durations[index])

    def _complete(self, instant: float, instance: _Instance) -> None:
        was_full = instance.busy == instance.slots
        instance.busy -= 1
        self._in_flight -= 1
        self._completions += 1
        if instance.busy == 0:
            self._serving_seconds += (instant - instance.busy_since) * self._specs[instance.spec].gpus
        if instance.state == DRAINING:
            if instance.busy == 0:
                self._end(instant, instance)
        elif self._queue:
            self._serve(instant, self._queue.popleft(), instance)
        elif was_full:
            self._free.append(instance)
        if self._in_flight == 0 and not self._queue:
            self._idle_since = instant

    def _ready(self, instant: float, instance: _Instance) -> None:
        instance.state = RUNNING
        instance.ready = instant
        self._running[instance.spec] += 1
        self._slots += instance.slots
        self._recent_startups = (*self._recent_startups, instant - instance.created)[-_REMEMBERED_STARTUPS:]
        while self._queue and instance.busy < instance.slots:
            self._serve(instant, self._queue.popleft(), instance)
        if instance.busy < instance.slots:
            self._free.append(instance)

    def _wake(self, instant: float) -> None:
        self._decide_at = min(
            self._decide_at, max(instant + self._reaction, self._decided_at + _WAKE_SPACING)
        )

    def _decide(self, instant: float) -> None:
        self._decisions += 1
        self._decided_at = instant
        answer = self._run.decide(instant, self._observe())
        self._decide_at = max(answer.requeue_at, instant + 1e-3)
        self._wake_queued = answer.wake_queued
        changed = False
        for spec, desired in enumerate(answer.desired):
            have = len(self._alive[spec])
            if desired > have:
                changed = self._start(instant, spec, desired - have) or changed
            elif desired < have:
                self._stop(instant, spec, have - desired)
                changed = True
        if changed and self._changes is not None:
            self._changes.append((instant, sum(len(instances) for instances in self._alive)))

    def _observe(self) -> Observation:
        specs = []
        for index, spec in enumerate(self._specs):
            alive = self._alive[index]
            starting: tuple[float, ...] = ()
            if len(alive) > self._running[index]:
                starting = tuple(instance.created for instance in alive if instance.state == STARTING)
            room = self._pool.room(spec.id, spec.gpus) if self._pool else None
            specs.append(SpecificationObservation(spec.id, self._running[index], starting, room))
        return Observation(
            self._arrived,
            self._completions,
            self._busy_seconds,
            len(self._queue),
            self._in_flight,
            tuple(specs),
            Activity(self._idle_since, self._busy_since, self._idle_before),
            self._recent_startups,
            self._demand_seconds,
            self._slot_seconds,
        )

    def _start(self, instant: float, spec: int, count: int) -> bool:
        settings = self._specs[spec]
        for started in range(count):
            if self._pool and not self._pool.acquire(settings.id, settings.gpus):
                self._refused += count - started
                return started > 0
            instance = _Instance(spec, settings.max_request_concurrency, instant)
            self._alive[spec].append(instance)
            self._starts += 1
            self._sequence += 1
            there = len(self._alive[spec])
            takes = next(self._startups[spec]) + settings.startup.delay(there, self._most[spec])
            self._most[spec] = max(self._most[spec], there)
            heappush(self._heap, (instant + takes, self._sequence, instance))
        return True

    def _stop(self, instant: float, spec: int, count: int) -> None:
        """Stop starting instances (newest first), then the longest idle, then the least busy, which drain."""
        alive = self._alive[spec]
        chosen = [instance for instance in reversed(alive) if instance.state == STARTING][:count]
        if len(chosen) < count:
            idle = [
                inst for inst in self._free if inst.spec == spec and inst.state == RUNNING and inst.busy == 0
            ]
            chosen += list(dict.fromkeys(idle))[: count - len(chosen)]
        if len(chosen) < count:
            busy = sorted(
                (inst for inst in alive if inst.state == RUNNING and inst.busy), key=lambda inst: inst.busy
            )
            chosen += busy[: count - len(chosen)]
        gone = set(map(id, chosen))
        self._alive[spec] = [instance for instance in alive if id(instance) not in gone]
        for instance in chosen:
            self._stops += 1
            if instance.state == RUNNING:
                self._running[spec] -= 1
                self._slots -= instance.slots
            instance.state = DRAINING
            if instance.busy == 0:
                self._end(instant, instance)

    def _end(self, instant: float, instance: _Instance) -> None:
        instance.state = GONE
        self._account(instant, instance)
        if self._pool:
            spec = self._specs[instance.spec]
            self._pool.release(spec.id, spec.gpus)

    def _account(self, instant: float, instance: _Instance) -> None:
        """Count an instance that ends now. Its serving time is counted when it becomes idle."""
        gpus = self._specs[instance.spec].gpus
        self._gpu_seconds += (instant - instance.created) * gpus
        self._starting_seconds += (min(instance.ready, instant) - instance.created) * gpus


def simulate(
    function: SimulatedFunction, policy: Policy, seed: int, *, trace: bool = False
) -> FunctionResult:
    """Run one function by itself to its end."""
    run = FunctionRun(function, policy, seed, trace=trace)
    run.advance(NEVER)
    return run.result()


def simulate_shared(
    functions: list[SimulatedFunction],
    policy: Policy,
    seed: int,
    gpus: dict[str, int],
    *,
    trace: bool = False,
) -> list[FunctionResult]:
    """Run functions side by side on one pool of GPUs."""
    pool = Pool(gpus)
    runs = [FunctionRun(function, policy, seed, pool, trace=trace) for function in functions]
    waiting = [(run.next_event, index) for index, run in enumerate(runs)]
    heap = [entry for entry in waiting if entry[0] < NEVER]
    heap.sort()
    while heap:
        instant, index = heappop(heap)
        following = runs[index].advance(instant)
        if following < NEVER:
            heappush(heap, (following, index))
        else:
            runs[index].release()
    return [run.result() for run in runs]
