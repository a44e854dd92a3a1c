"""The reconcile loop: makes a backend run what the deployments ask for and reports every instance's state."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from nvcf_agent import lifecycle
from nvcf_agent.backends.interface import Backend, Ended, Ready
from nvcf_agent.desired import Slot, Wanted, wanted_versions
from nvcf_agent.environment import Endpoints, InstanceSpec
from nvcf_agent.errors import StartError
from nvcf_agent.lifecycle import Lifecycle
from nvcf_agent.plan import Action, Create, Forget, GiveUp, Start, Terminate, next_retry, plan
from nvcf_agent.queues import Queues
from nvcf_agent.tokens import TokenSource
from nvcf_broker.errors import BrokerError
from nvcf_broker.kv import KvMirror
from nvcf_proto.ids import new_id
from nvcf_proto.models import Deployment, FunctionVersion, Instance
from nvcf_proto.settings import INFERENCE_READY_TIMEOUT

_log = logging.getLogger(__name__)

TERMINATION_GRACE_SECONDS = 30.0
# Level-triggered: even if every wake-up were lost, this is how late the agent would notice.
_LONGEST_SLEEP_SECONDS = 5.0
_PUBLISH_RETRY_SECONDS = 0.5
_DRAIN_POLL_SECONDS = 0.1


@dataclass
class Mirrors:
    """The buckets that an agent reads, and the one it writes its own instances to."""

    deployments: KvMirror[Deployment]
    versions: KvMirror[FunctionVersion]
    instances: KvMirror[Instance]


@dataclass
class Agent:
    """One cluster's agent. Owns every instance record that carries its cluster's id."""

    cluster: str
    backend: Backend
    mirrors: Mirrors
    tokens: TokenSource
    endpoints: Endpoints
    queues: Queues
    grace: float = TERMINATION_GRACE_SECONDS
    ready_timeout: float = INFERENCE_READY_TIMEOUT
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    _states: dict[str, Lifecycle] = field(default_factory=dict)
    _busy: set[str] = field(default_factory=set)
    _stopping: bool = False
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Look again now: something may have changed."""
        self.woken.set()

    def adopt(self) -> set[str]:
        """Take over the instances that an earlier run recorded; returns their ids. Mirrors must be ready."""
        for record in self.mirrors.instances.values():
            if record.cluster_id == self.cluster:
                self._states[record.id] = lifecycle.adopted(record, self.wall())
        return set(self._states)

    async def run(self, stop: asyncio.Event) -> None:
        """Reconcile until `stop` is set; then end all instances in order, their records say PENDING.

        When cancelled instead, the processes are killed and the records stay as they are.
        """
        try:
            async with asyncio.TaskGroup() as group:
                events = group.create_task(self._follow_events())
                stopper = group.create_task(self._wake_on(stop))
                while not stop.is_set():
                    await self._reconcile(group)
                events.cancel()
                stopper.cancel()
                await self._shut_down()
        finally:
            await self._end_processes(grace=0)

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopping = True
        self.wake()

    async def _reconcile(self, group: asyncio.TaskGroup) -> None:
        """One round, and the wait until there may be something to do again."""
        self.woken.clear()
        for action in self._plan():
            self._begin(group, action)
        published = await self._publish()
        delay = min(_LONGEST_SLEEP_SECONDS, next_retry(self._idle(), self.monotonic()))
        if not published:
            delay = min(delay, _PUBLISH_RETRY_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self.woken.wait()

    def _wanted(self) -> dict[str, Wanted]:
        versions = dict(self.mirrors.versions.items())
        return wanted_versions(self.mirrors.deployments.values(), versions, self.cluster)

    def _idle(self) -> list[Lifecycle]:
        return [state for state in self._states.values() if state.id not in self._busy]

    def _plan(self) -> list[Action]:
        actions = plan(self._wanted(), self._states.values(), self.monotonic(), self.ready_timeout)
        return [each for each in actions if isinstance(each, Create) or each.instance_id not in self._busy]

    def _begin(self, group: asyncio.TaskGroup, action: Action) -> None:
        match action:
            case Create(version_id, slot):
                self._create(version_id, slot)
            case Start(instance_id, slot):
                self._set(
                    lifecycle.starting(
                        self._states[instance_id], slot, now=self.monotonic(), wall=self.wall()
                    )
                )
                self._spawn(group, instance_id, lambda: self._start(instance_id, slot))
            case Terminate(instance_id, reason):
                self._set(lifecycle.terminating(self._states[instance_id], reason, self.wall()))
                self._spawn(group, instance_id, lambda: self._terminate(instance_id))
            case GiveUp(instance_id, reason):
                self._set(lifecycle.given_up(self._states[instance_id], reason))
                self._spawn(group, instance_id, lambda: self.backend.delete(instance_id, self.grace))
            case Forget(instance_id):
                self._spawn(group, instance_id, lambda: self._forget(instance_id))

    def _create(self, version_id: str, slot: Slot) -> None:
        version = self.mirrors.versions.get(version_id)
        if version is None:
            return
        state = lifecycle.new_instance(
            new_id(),
            function_id=version.function_id,
            version_id=version_id,
            cluster=self.cluster,
            wall=self.wall(),
        )
        _log.info("new instance %s of %s (%s)", state.id, version.name, slot)
        self._set(state)
        self.wake()

    def _spawn(self, group: asyncio.TaskGroup, instance_id: str, work: Callable[[], Awaitable[None]]) -> None:
        self._busy.add(instance_id)

        async def run() -> None:
            try:
                await work()
            finally:
                self._busy.discard(instance_id)
                self.wake()

        group.create_task(run(), name=f"work on instance {instance_id}")

    def _set(self, state: Lifecycle) -> None:
        before = self._states.get(state.id)
        if before is None or before.state is not state.state:
            _log.info("instance %s of version %s: %s", state.id, state.record.version_id, state.state.value)
        self._states[state.id] = state

    async def _start(self, instance_id: str, slot: Slot) -> None:
        record = self._states[instance_id].record
        wanted = self._wanted().get(record.version_id)
        try:
            if wanted is None:
                raise StartError("the version is not deployed here any more")
            token = await self.tokens.worker_token(instance_id, record.function_id, record.version_id)
            spec = InstanceSpec(
                instance_id, wanted.version, wanted.source, slot, self.cluster, self.endpoints, token
            )
            if self._stopping:
                raise StartError("the agent is stopping")
            running = await self.backend.create(spec)
        except StartError as error:
            _log.warning("instance %s cannot start: %s", instance_id, error)
            state = self._states[instance_id]
            self._set(lifecycle.refused(state, str(error), now=self.monotonic(), wall=self.wall()))
            return
        self._set(
            lifecycle.has_process(
                self._states[instance_id],
                pid=running.pid,
                health_port=running.health_port,
                log_path=running.log_path,
                wall=self.wall(),
            )
        )

    async def _terminate(self, instance_id: str) -> None:
        # Told before it goes, so that nobody counts on it any more.
        await self._publish()
        await self._drain(self._states[instance_id].record.version_id)
        await self.backend.delete(instance_id, self.grace)

    async def _drain(self, version_id: str) -> None:
        """Let the workers of a version that is no longer deployed finish what its queue holds, for a while.

        Gateways send it nothing more; what would stay in the queue could only time out.
        """
        until = self.monotonic() + self.grace
        while version_id not in self._wanted() and not self._stopping:
            left = await self.queues.unfinished(version_id)
            if left == 0:
                return
            if self.monotonic() > until:
                _log.warning("%s requests of version %s are left after %g s", left, version_id, self.grace)
                return
            await asyncio.sleep(_DRAIN_POLL_SECONDS)

    async def _forget(self, instance_id: str) -> None:
        await self.backend.forget(instance_id)
        self._states.pop(instance_id, None)

    async def _follow_events(self) -> None:
        async for event in self.backend.watch():
            state = self._states.get(event.instance_id)
            if state is None:
                continue
            match event:
                case Ready():
                    self._set(lifecycle.ready(state, self.wall()))
                case Ended(_, reason):
                    if not state.is_ending:
                        _log.warning("instance %s ended: %s", state.id, reason)
                    self._set(lifecycle.ended(state, reason, now=self.monotonic(), wall=self.wall()))
            self.wake()

    async def _publish(self) -> bool:
        """Bring the instances bucket up to date; False if the broker did not take everything."""
        mirror = self.mirrors.instances
        try:
            # Who serves is told before who leaves: no reader finds a replaced version without an instance.
            for state in sorted(self._states.values(), key=lambda each: each.is_ending):
                if mirror.get(state.record.key) != state.record:
                    await mirror.put(state.record.key, state.record)
            for key, record in mirror.items():
                if record.cluster_id == self.cluster and record.id not in self._states:
                    await mirror.delete(key)
        except BrokerError as error:
            _log.warning("cannot report instance states: %s", error)
            return False
        return True

    async def _end_processes(self, grace: float) -> None:
        running = await self.backend.list()
        await asyncio.gather(*(self.backend.delete(each.instance_id, grace) for each in running))

    async def _shut_down(self) -> None:
        _log.info("stopping: ending %d instances", len(await self.backend.list()))
        await self._end_processes(self.grace)
        for instance_id, state in list(self._states.items()):
            self._states[instance_id] = lifecycle.stopped(state, self.wall())
        await self._publish()
