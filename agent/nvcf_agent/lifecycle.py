"""The states of one instance and what moves it from one to the next. Pure; times are passed in.

PENDING -> STARTING -> RUNNING -> TERMINATING -> COMPLETED, and from STARTING or RUNNING to FAILED and back to
STARTING. The record in the instances bucket is a part of this state; the rest is known to the agent alone.
"""

from dataclasses import dataclass, replace

from nvcf_agent.desired import Slot
from nvcf_broker.process import RestartPolicy
from nvcf_proto.models import Instance, InstanceState

RESTARTS = RestartPolicy(initial=0.5, factor=2.0, maximum=30.0, stable_after=30.0)
# Not the function's fault: the gateway is starting or away, and answers again as soon as it is there.
REFUSALS = RestartPolicy(initial=0.2, factor=2.0, maximum=3.0, stable_after=0.0)
REASON_LIMIT = 4000


@dataclass(frozen=True)
class Lifecycle:
    """One instance as its agent knows it; `started_at` and `retry_at` in seconds of a monotonic clock."""

    record: Instance
    slot: Slot | None = None
    has_process: bool = False
    has_run: bool = False
    failures: int = 0
    refusals: int = 0
    started_at: float = 0.0
    retry_at: float = 0.0
    verdict: str = ""

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def state(self) -> InstanceState:
        return self.record.state

    @property
    def is_ending(self) -> bool:
        return self.record.state in (InstanceState.TERMINATING, InstanceState.COMPLETED)

    def _to(self, state: InstanceState, wall: float, **changes: object) -> "Lifecycle":
        return replace(self, record=self.record.changed(wall, state=state, **changes))


def new_instance(
    record_id: str, *, function_id: str, version_id: str, cluster: str, wall: float
) -> Lifecycle:
    """An instance that exists so far only on paper. `wall` is Unix time, here and below."""
    record = Instance(
        id=record_id,
        function_id=function_id,
        version_id=version_id,
        cluster_id=cluster,
        state=InstanceState.PENDING,
        updated_at=wall,
        created_at=wall,
    )
    return Lifecycle(record)


def adopted(record: Instance, wall: float) -> Lifecycle:
    """An instance that an earlier run of the agent recorded. Its process ended with that run."""
    if record.state in (InstanceState.TERMINATING, InstanceState.COMPLETED):
        return Lifecycle(record.changed(wall, pid=None))
    state = Lifecycle(record, has_run=True)
    return state._to(InstanceState.PENDING, wall, pid=None, ready_at=None, reason="the agent was restarted")


def starting(state: Lifecycle, slot: Slot, *, now: float, wall: float) -> Lifecycle:
    """Its process is about to be started."""
    moved = replace(state, slot=slot, started_at=now, has_process=False, verdict="")
    # A crash stays readable until it serves again; what kept it waiting is over.
    reason = state.record.reason if state.state is InstanceState.FAILED else None
    return moved._to(InstanceState.STARTING, wall, ready_at=None, pid=None, reason=reason)


def has_process(
    state: Lifecycle, *, pid: int | None, health_port: int | None, log_path: str, wall: float
) -> Lifecycle:
    """Its process runs and is not ready yet. Every process but the first counts as a restart."""
    restarts = state.record.restarts + (1 if state.has_run else 0)
    moved = replace(state, has_process=True, has_run=True, refusals=0)
    return moved._to(
        state.state, wall, pid=pid, health_port=health_port, log_path=log_path, restarts=restarts
    )


def ready(state: Lifecycle, wall: float) -> Lifecycle:
    """Its health check answered for the first time since the start."""
    if state.state is not InstanceState.STARTING or not state.has_process:
        return state
    return state._to(InstanceState.RUNNING, wall, ready_at=wall, reason=None)


def refused(state: Lifecycle, reason: str, *, now: float, wall: float) -> Lifecycle:
    """Its process could not be started for a reason that lies outside the function."""
    if state.is_ending:
        return state
    refusals = state.refusals + 1
    moved = replace(
        state, has_process=False, refusals=refusals, retry_at=now + max(0.2, REFUSALS.delay(refusals))
    )
    return moved._to(InstanceState.PENDING, wall, reason=reason[:REASON_LIMIT], pid=None)


def ended(state: Lifecycle, reason: str, *, now: float, wall: float) -> Lifecycle:
    """Its process is gone: as asked for, or FAILED and to be restarted after a delay."""
    if state.is_ending:
        return replace(state, has_process=False)._to(InstanceState.COMPLETED, wall, pid=None)
    if state.verdict:
        reason = f"{state.verdict}\n{reason}"
    failures = RESTARTS.failures_after(state.failures, now - state.started_at)
    moved = replace(state, has_process=False, failures=failures, retry_at=now + RESTARTS.delay(failures))
    return moved._to(InstanceState.FAILED, wall, reason=reason[:REASON_LIMIT], pid=None)


def given_up(state: Lifecycle, verdict: str) -> Lifecycle:
    """Its process is being ended for a reason that its exit code will not tell."""
    return replace(state, verdict=verdict)


def stopped(state: Lifecycle, wall: float) -> Lifecycle:
    """Its process was ended because the agent stops; the next run of the agent starts it again."""
    if state.is_ending:
        return state
    moved = replace(state, has_process=False, retry_at=0.0)
    return moved._to(InstanceState.PENDING, wall, pid=None, ready_at=None, reason="the agent was stopped")


def terminating(state: Lifecycle, reason: str, wall: float) -> Lifecycle:
    """It has been told to finish what it holds and to leave."""
    return state if state.is_ending else state._to(InstanceState.TERMINATING, wall, reason=reason)
