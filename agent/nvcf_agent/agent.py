"""The agent of one cluster: handles messages, makes a backend run instances, and reports their states."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from nvcf_agent.accounts import AccountTelemetry
from nvcf_agent.backends.environment import NO_TELEMETRY, Endpoints, InstanceSpec, WorkerTelemetry
from nvcf_agent.backends.interface import Backend
from nvcf_agent.errors import LaunchError, Refused, StartError, StoreError
from nvcf_agent.prometheus_sd import PrometheusTargets
from nvcf_agent.records import Published, Records
from nvcf_agent.requeue import Requeuer
from nvcf_agent.state import transitions
from nvcf_agent.state.actions import (
    KEEP_FINISHED_SECONDS,
    Clean,
    Complete,
    Delete,
    Forget,
    GiveUp,
    Start,
    next_action,
    next_retry,
)
from nvcf_agent.state.inventory import Inventory
from nvcf_agent.state.managed_instance import DEFAULT_GRACE_SECONDS, ManagedInstance
from nvcf_agent.state.message_handlers import handle_creation, handle_termination
from nvcf_agent.state.persisted_state import PersistedState
from nvcf_agent.state.record_changes import MissingFor
from nvcf_agent.state.transitions import Ended, Event, Ready, after_event, after_failed_start
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_agent.tokens import TokenSource
from nvcf_broker.errors import BrokerError
from nvcf_broker.kv import KvMirror
from nvcf_proto.compute import MESSAGE_MAX_AGE_SECONDS, CreationMessage, GpuPool, TerminationMessage
from nvcf_proto.models import FunctionVersion
from nvcf_proto.settings import INFERENCE_READY_TIMEOUT

_log = logging.getLogger(__name__)

# The agent is level-triggered: if a wake-up is lost, it reacts this late.
_LONGEST_SLEEP_SECONDS = 5.0
_RETRY_SECONDS = 0.5
# A record or version that is missing may only be late. After this time it counts as removed.
_GONE_AFTER_SECONDS = 5.0
_VERSION_SECONDS = 2.0


@dataclass
class Agent:
    """One cluster's agent. It owns every record of its cluster, from the creation message on."""

    cluster: str
    backend: Backend
    persisted: PersistedState
    records: Records
    versions: KvMirror[FunctionVersion]
    tokens: TokenSource
    endpoints: Endpoints
    inventory: Inventory
    telemetry: AgentTelemetry
    worker_telemetry: WorkerTelemetry = NO_TELEMETRY
    accounts: AccountTelemetry | None = None
    targets: PrometheusTargets | None = None
    requeuer: Requeuer | None = None
    grace: float = DEFAULT_GRACE_SECONDS
    ready_timeout: float = INFERENCE_READY_TIMEOUT
    keep_finished: float = KEEP_FINISHED_SECONDS
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _instances: dict[str, ManagedInstance] = field(default_factory=dict)
    _busy: set[str] = field(default_factory=set)
    _urgent: dict[str, float] = field(default_factory=dict)
    _missing_for: MissingFor = field(default_factory=lambda: MissingFor(_GONE_AFTER_SECONDS))
    _handling: asyncio.Lock = field(default_factory=asyncio.Lock)
    _stopping: bool = False

    async def adopt(self) -> None:
        """Take over the instances of an earlier run, and end unknown ones. Raises `StoreError`."""
        mine = {each.id: each for each in await self.persisted.load(self.cluster)}
        await self.backend.prepare({each.id for each in mine.values() if not each.is_final})
        running = {each.instance_id: each for each in await self.backend.list()}
        for instance in mine.values():
            there = running.get(instance.id)
            if there is not None:
                now = self.monotonic()
                self._instances[instance.id] = replace(
                    instance, has_process=True, pid=there.pid, waiting_since=now, launched_at=now
                )
            else:
                text = "the agent was restarted"
                self._instances[instance.id] = transitions.interrupted(instance, text, self.wall())
        for instance_id in running.keys() - mine.keys():
            _log.warning("ending instance %s: it is unknown", instance_id)
            await self.backend.delete(instance_id, 0)

    def instances(self) -> list[ManagedInstance]:
        """Return all instances."""
        return list(self._instances.values())

    def pools(self) -> tuple[GpuPool, ...]:
        """Return what the cluster has and what is free."""
        return self.inventory.pools(each.held for each in self._instances.values())

    async def create(self, body: bytes) -> None:
        """Handle a creation message. Raises `InvalidRecord` and `StoreError`."""
        message = CreationMessage.from_json(body)
        async with self._handling:
            created = handle_creation(
                message,
                cluster=self.cluster,
                inventory=self.inventory,
                held=[each.held for each in self._instances.values()],
                known=self._instances.keys() | self.persisted.ended.keys(),
                records=self.records.by_id(message.version_id, message.instance_ids),
                wall=self.wall(),
                draining=self._stopping,
            )
            for text in created.ignored:
                _log.info("creation message %s: %s", message.message_id, text)
            await self.persisted.save(created.instances)
            for instance in created.instances:
                self._set(instance)
        self.wake()

    async def terminate(self, body: bytes) -> None:
        """Handle a termination message. Raises `InvalidRecord` and `StoreError`."""
        message = TerminationMessage.from_json(body)
        async with self._handling:
            wall = self.wall()
            ended = handle_termination(message, cluster=self.cluster, known=self._instances, wall=wall)
            await self.persisted.save(ended.instances)
            for instance in ended.instances:
                self._urgent[instance.id] = instance.grace
                self._set(instance)
            if ended.unknown:
                until = wall + MESSAGE_MAX_AGE_SECONDS
                await self.persisted.save_ended(ended.unknown, until=until, wall=wall)
        self.wake()

    def wake(self) -> None:
        """Start another round now."""
        self.woken.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then end in order the instances that cannot outlive the agent.

        If cancelled instead, these end at once and their persisted state stays as it was.
        """
        try:
            async with asyncio.TaskGroup() as group:
                events = group.create_task(self._follow_events())
                stopper = group.create_task(self._wake_on(stop))
                while not stop.is_set():
                    await self._round(group)
                stopper.cancel()
                # From here on the agent ends the processes, so an end is no failure of the function.
                events.cancel()
                await asyncio.wait({events})
                await self._shut_down()
        finally:
            await self.backend.close(0)

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopping = True
        self.wake()

    async def _round(self, group: asyncio.TaskGroup) -> None:
        """Act on every instance, report, and wait until there may be something to do."""
        self.woken.clear()
        self._end_deleted_versions()
        now, wall = self.monotonic(), self.wall()
        for instance in list(self._instances.values()):
            self._act(group, instance, now, wall)
        complete = await self._report()
        idle = [each for each in self._instances.values() if each.id not in self._busy]
        delay = min(_LONGEST_SLEEP_SECONDS, next_retry(idle, self.monotonic()))
        if not complete:
            delay = min(delay, _RETRY_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self.woken.wait()

    def _act(self, group: asyncio.TaskGroup, instance: ManagedInstance, now: float, wall: float) -> None:
        urgent = self._urgent.pop(instance.id, None)
        if instance.id in self._busy:
            if urgent is not None and instance.has_process:
                # Another action is running, which must not take longer than the new grace period.
                group.create_task(self.backend.delete(instance.id, urgent))
            return
        action = next_action(
            instance, now, wall, ready_timeout=self.ready_timeout, keep_finished=self.keep_finished
        )
        match action:
            case Start():
                self._set(transitions.creating(instance, wall=wall))
                self._spawn(group, instance.id, lambda: self._start(instance.id))
            case Delete(grace):
                self._spawn(group, instance.id, lambda: self.backend.delete(instance.id, grace))
            case GiveUp(reason):
                self._set(transitions.given_up(instance, reason))
                self._spawn(group, instance.id, lambda: self.backend.delete(instance.id, self.grace))
            case Complete():
                self._set(transitions.completed(instance, wall))
                self.wake()
            case Clean():
                self._spawn(group, instance.id, lambda: self._clean(instance.id))
            case Forget():
                self._spawn(group, instance.id, lambda: self._forget(instance.id))

    def _spawn(self, group: asyncio.TaskGroup, instance_id: str, work: Callable[[], Awaitable[None]]) -> None:
        self._busy.add(instance_id)

        async def run() -> None:
            try:
                await work()
            finally:
                self._busy.discard(instance_id)
                self.wake()

        group.create_task(run(), name=f"work on instance {instance_id}")

    def _set(self, instance: ManagedInstance) -> None:
        before = self._instances.get(instance.id)
        if before is None or before.phase is not instance.phase:
            level = logging.WARNING if instance.category is not None else logging.INFO
            reason = f" ({instance.category}: {instance.reason})" if instance.category is not None else ""
            name = instance.order.function_name
            _log.log(level, "instance %s of %s: %s%s", instance.id, name, instance.phase.value, reason)
        self._instances[instance.id] = instance
        self.changed.set()

    async def _start(self, instance_id: str) -> None:
        order, share = self._instances[instance_id].order, self._instances[instance_id].share
        version = await self._version(order.version_id)
        trace = self.telemetry.starting(self._instances[instance_id])
        try:
            token = await self.tokens.worker_token(instance_id, order.function_id, order.version_id)
            telemetry = self.worker_telemetry
            if self.accounts is not None:
                telemetry = await self.accounts.of(version, order.replace(instance_ids=(instance_id,)))
            spec = InstanceSpec(
                order=order,
                share=share,
                limits=self.inventory.limits(order.instance_type),
                endpoints=self.endpoints,
                worker_token=token,
                tags=version.tags if version is not None else (),
                trace=trace,
                telemetry=telemetry,
            )
            if self._stopping or self._instances[instance_id].is_ending:
                self.telemetry.failed(instance_id, "no longer needed")
                return
            running = await self.backend.create(spec)
        except (StartError, LaunchError, Refused) as error:
            _log.warning("instance %s cannot start: %s", instance_id, error)
            self.telemetry.failed(instance_id, str(error))
            instance = self._instances[instance_id]
            self._set(after_failed_start(instance, error, now=self.monotonic(), wall=self.wall()))
            return
        if self.targets is not None:
            self.targets.set_address(instance_id, running.metrics)
        self._set(
            transitions.launched(
                self._instances[instance_id],
                pid=running.pid,
                health_port=running.health_port,
                log_path=running.log_path,
                now=self.monotonic(),
                wall=self.wall(),
            )
        )

    async def _version(self, version_id: str) -> FunctionVersion | None:
        """Return the version's record, which may arrive later than the creation message."""
        with contextlib.suppress(TimeoutError):
            await self.versions.wait_for(lambda known: version_id in known, _VERSION_SECONDS)
        return self.versions.get(version_id)

    async def _clean(self, instance_id: str) -> None:
        if self.requeuer is not None:
            await self.requeuer.requeue(instance_id, self._instances[instance_id].order.version_id)
        await self.backend.forget(instance_id)
        self._instances[instance_id] = replace(self._instances[instance_id], cleaned=True)

    async def _forget(self, instance_id: str) -> None:
        try:
            await self.records.remove(self._instances[instance_id])
            await self.persisted.forget(instance_id)
        except (BrokerError, StoreError) as error:
            _log.warning("the record of instance %s stays for now: %s", instance_id, error)
            await asyncio.sleep(_RETRY_SECONDS)
            return
        del self._instances[instance_id]
        self._missing_for.drop(instance_id)

    async def _follow_events(self) -> None:
        async for event in self.backend.watch():
            instance = self._instances.get(event.instance_id)
            if instance is None:
                continue
            if isinstance(event, Ended) and not instance.is_ending:
                _log.warning("instance %s ended: %s", instance.id, event.reason)
            self._record_event(instance, event)
            self._set(after_event(instance, event, now=self.monotonic(), wall=self.wall()))
            self.wake()

    def _record_event(self, instance: ManagedInstance, event: Event) -> None:
        match event:
            case Ready():
                self.telemetry.ready(instance.id)
            case Ended(_, reason, category):
                self.telemetry.ended(instance, category.value, reason)
                if self.targets is not None:
                    self.targets.set_address(instance.id, None)

    def _end_deleted_versions(self) -> None:
        if not self.versions.is_ready:
            return
        for instance in list(self._instances.values()):
            gone = instance.order.version_id not in self.versions
            if not instance.is_ending and self._missing_for.exceeded(
                ("version", instance.id), gone, self.monotonic()
            ):
                self._terminate(instance, "its version was deleted")

    def _terminate(self, instance: ManagedInstance, reason: str) -> None:
        self._set(transitions.terminating(instance, reason, self.grace, self.wall()))
        self.wake()

    async def _report(self) -> bool:
        """Bring store and bucket up to date. Return False if that has to be tried again."""
        try:
            await self.persisted.save(self._instances.values())
        except StoreError as error:
            _log.error("%s", error)
            return False
        listed = list(self._instances.values())
        if self.targets is not None:
            await self.targets.update(listed)
        result = await self.records.publish(listed, self.persisted.ended, self.wall(), self.keep_finished)
        self._apply(listed, result)
        return result.complete

    def _apply(self, listed: list[ManagedInstance], result: Published) -> None:
        for instance in listed:
            current = self._instances.get(instance.id)
            if current is None:
                continue
            if instance.id in result.written and not current.published:
                self._instances[instance.id] = current = replace(current, published=True)
            gone = instance.id in result.missing
            lasts = self._missing_for.exceeded(("record", instance.id), gone, self.monotonic())
            if current.is_ending:
                continue
            if lasts:
                self._terminate(current, "its record was removed")
            elif instance.id in result.closed:
                self._terminate(current, result.closed[instance.id])

    async def _shut_down(self) -> None:
        _log.info("stopping: ending %d instances", len(await self.backend.list()))
        await self.backend.close(self.grace)
        alive = {each.instance_id for each in await self.backend.list()}
        for instance in list(self._instances.values()):
            if instance.id not in alive:
                stopped = transitions.interrupted(instance, "the agent was stopped", self.wall())
                self._instances[instance.id] = transitions.completed(stopped, self.wall())
        await self._report()
