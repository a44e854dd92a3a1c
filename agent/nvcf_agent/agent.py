"""The agent of one cluster: makes a backend run the instances of its requests."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from nvcf_agent.accounts import AccountTelemetry
from nvcf_agent.backends.environment import NO_TELEMETRY, InstanceSpec, WorkerTelemetry
from nvcf_agent.backends.interface import Backend, Running
from nvcf_agent.errors import AgentError, LaunchError, Refused, StartError, StoreError
from nvcf_agent.prometheus_sd import PrometheusTargets
from nvcf_agent.requests import Requests
from nvcf_agent.state import order as orders
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
from nvcf_agent.state.events import Ended, Event, Progress, Ready
from nvcf_agent.state.inventory import Inventory
from nvcf_agent.state.managed_instance import ManagedInstance
from nvcf_agent.state.transitions import after_event, after_failed_start
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.reports import GpuUsage
from nvcf_proto.settings import INFERENCE_READY_TIMEOUT

_log = logging.getLogger(__name__)

# The agent is level-triggered: if a wake-up is lost, it reacts this late.
_LONGEST_SLEEP_SECONDS = 5.0
_RETRY_SECONDS = 0.5


@dataclass
class Agent:
    """One cluster's agent."""

    requests: Requests
    backend: Backend
    telemetry: AgentTelemetry
    zone: str = ""
    worker_telemetry: WorkerTelemetry = NO_TELEMETRY
    accounts: AccountTelemetry | None = None
    targets: PrometheusTargets | None = None
    ready_timeout: float = INFERENCE_READY_TIMEOUT
    keep_finished: float = KEEP_FINISHED_SECONDS
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    _busy: set[str] = field(default_factory=set)
    _work: set[asyncio.Task[None]] = field(default_factory=set)
    _stopping: bool = False
    _unstored: bool = False
    _acted: asyncio.Event = field(default_factory=asyncio.Event)
    _store_pause: float = _RETRY_SECONDS

    @property
    def inventory(self) -> Inventory:
        """Everything that instances can use."""
        return self.requests.inventory

    async def adopt(self) -> None:
        """Take over the instances of an earlier run, and end unknown ones. Raises `StoreError`."""
        mine = {each.id: each for each in await self.requests.persisted.load()}
        await self.backend.prepare({each.id for each in mine.values() if not each.is_over})
        running = {each.instance_id: each for each in await self.backend.list()}
        for instance in mine.values():
            there = running.get(instance.id)
            self.requests.instances[instance.id] = self._adopted(instance, there)
        for instance_id in running.keys() - mine.keys():
            _log.warning("ending instance %s: it is unknown", instance_id)
            await self.backend.delete(instance_id, 0)

    def _adopted(self, instance: ManagedInstance, there: Running | None) -> ManagedInstance:
        now, wall = self.monotonic(), self.wall()
        if there is not None:
            return transitions.taken_over(instance, pid=there.pid, is_ready=there.ready, now=now, wall=wall)
        if not instance.has_run or (self.backend.restarts and not instance.is_task):
            return transitions.interrupted(instance, "the agent was restarted", wall)
        return transitions.lost(instance, "it was gone when the agent started", wall)

    def usage(self) -> dict[str, GpuUsage]:
        """Return what the cluster has and what is free."""
        return self.inventory.usage([each.held_share for each in list(self.requests.instances.values())])

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
                storing = group.create_task(self._keep_stored())
                stopper = group.create_task(self._wake_on(stop))
                while not stop.is_set():
                    await self._round(group)
                stopper.cancel()
                # From here on the agent ends the processes, so an end is no failure of the function.
                events.cancel()
                storing.cancel()
                await asyncio.wait({events, storing})
                if self.backend.restarts:
                    await self._shut_down()
                else:
                    # The next agent finds all instances, and repeats what is not finished.
                    for each in self._work:
                        each.cancel()
                    await self._store()
        finally:
            await self.backend.close(0)

    async def _wake_on(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._stopping = self.requests.refusing = True
        self.wake()

    async def _round(self, group: asyncio.TaskGroup) -> None:
        """Act on every instance, and wait until there may be something to do. The store is written beside."""
        self.woken.clear()
        now, wall = self.monotonic(), self.wall()
        for instance in list(self.requests.instances.values()):
            self._act(group, instance, now, wall)
        busy = self.monotonic() - now
        self._acted.set()
        idle = [each for each in self.requests.instances.values() if each.id not in self._busy]
        delay = min(_LONGEST_SLEEP_SECONDS, next_retry(idle, self.monotonic()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self.woken.wait()
        # Rounds over thousands of instances take at most half of the time: changes gather meanwhile.
        await asyncio.sleep(busy)

    async def _keep_stored(self) -> None:
        """Store what has changed after each round, until cancelled. Rounds do not wait for it."""
        while True:
            await self._acted.wait()
            self._acted.clear()
            unstored, self._unstored = self._unstored, False
            if await self._store():
                if unstored:
                    self.wake()
            else:
                self._unstored |= unstored
                await asyncio.sleep(self._store_pause)
                self._acted.set()

    def _act(self, group: asyncio.TaskGroup, instance: ManagedInstance, now: float, wall: float) -> None:
        urgent = self.requests.urgent.pop(instance.id, None)
        if instance.id in self._busy:
            if urgent is not None and instance.has_process:
                # Another action is running, which must not take longer than the new grace period.
                self._track(group.create_task(self._delete(instance.id, urgent)))
            return
        action = next_action(
            instance,
            now,
            wall,
            ready_timeout=self.ready_timeout,
            keep_finished=self.keep_finished,
            removed=instance.request_id in self.requests.removed,
        )
        if isinstance(action, Delete | GiveUp) and not self._may_delete(instance):
            self._unstored = True
            return
        match action:
            case Start():
                self._set(transitions.creating(instance, wall=wall))
                self._spawn(group, instance.id, lambda: self._start(instance.id))
            case Delete(grace):
                self._spawn(group, instance.id, lambda: self._delete(instance.id, grace))
            case GiveUp(reason):
                self._set(transitions.given_up(instance, reason))
                grace = orders.grace(instance.order, self.requests.grace)
                self._spawn(group, instance.id, lambda: self._delete(instance.id, grace))
            case Complete():
                self._set(transitions.completed(instance, wall))
            case Clean():
                self._spawn(group, instance.id, lambda: self._clean(instance.id))
            case Forget():
                self._spawn(group, instance.id, lambda: self._forget(instance.id))

    def _may_delete(self, instance: ManagedInstance) -> bool:
        """Return whether the next agent would know why an instance is gone, if it outlives this one."""
        return self.backend.restarts or self.requests.persisted.has(instance)

    def _spawn(self, group: asyncio.TaskGroup, instance_id: str, work: Callable[[], Awaitable[None]]) -> None:
        self._busy.add(instance_id)

        async def run() -> None:
            try:
                await work()
            finally:
                self._busy.discard(instance_id)
                self.wake()

        self._track(group.create_task(run(), name=f"work on instance {instance_id}"))

    def _track(self, task: asyncio.Task[None]) -> None:
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _get(self, instance_id: str) -> ManagedInstance:
        return self.requests.instances[instance_id]

    def _set(self, instance: ManagedInstance) -> None:
        self.requests.set(instance)

    async def _start(self, instance_id: str) -> None:
        instance = self._get(instance_id)
        trace = self.telemetry.starting(instance)
        try:
            telemetry = self.worker_telemetry
            if self.accounts is not None:
                telemetry = await self.accounts.of(instance)
            # A message may leave out the number that its instance type has.
            gpus = instance.order.requested_gpu_count or instance.share.gpus * instance.share.nodes
            spec = InstanceSpec(
                order=instance.order.replace(requested_gpu_count=gpus),
                index=instance.index,
                share=instance.share,
                limits=self.inventory.limits(orders.instance_type(instance.order)),
                zone=self.zone,
                trace=trace,
                telemetry=telemetry,
            )
            if self._stopping or self._get(instance_id).is_ending:
                self.telemetry.failed(instance_id, "no longer needed")
                return
            if instance.is_task:
                # Should the agent die from here on, the next one must not run the task once more.
                self._set(transitions.about_to_run(self._get(instance_id)))
                await self.requests.persisted.save([self._get(instance_id)])
            running = await self._create(spec)
        except StoreError as error:
            _log.warning("instance %s cannot start: %s", instance_id, error)
            not_stored, now = StartError(str(error)), self.monotonic()
            self._set(after_failed_start(self._get(instance_id), not_stored, now=now, wall=self.wall()))
            return
        except (StartError, LaunchError, Refused) as error:
            _log.warning("instance %s cannot start: %s", instance_id, error)
            self.telemetry.failed(instance_id, str(error))
            now, wall = self.monotonic(), self.wall()
            restarts = self.backend.restarts and not instance.is_task
            self._set(
                after_failed_start(self._get(instance_id), error, now=now, wall=wall, restarts=restarts)
            )
            return
        if self.targets is not None:
            self.targets.set_address(instance_id, running.metrics)
        launched = transitions.launched(
            self._get(instance_id),
            pid=running.pid,
            health_port=running.health_port,
            log_path=running.log_path,
            now=self.monotonic(),
            wall=self.wall(),
        )
        self._set(transitions.ready(launched, self.wall()) if running.ready else launched)

    async def _create(self, spec: InstanceSpec) -> Running:
        try:
            return await self.backend.create(spec)
        except ValueError as error:
            # For example a null character in an argument: no other try can do better.
            raise LaunchError(f"cannot be started: {error}") from error

    async def _delete(self, instance_id: str, grace: float) -> None:
        try:
            await self.backend.delete(instance_id, grace)
        except AgentError as error:
            _log.warning("instance %s cannot be deleted, trying again: %s", instance_id, error)
            await asyncio.sleep(_RETRY_SECONDS)
            return
        instance = self.requests.instances.get(instance_id)
        if instance is not None and not self.backend.restarts:
            self._set(transitions.deleted(instance, now=self.monotonic(), wall=self.wall()))

    async def _clean(self, instance_id: str) -> None:
        instance = self._get(instance_id)
        held = await self.backend.held_requests(instance_id, instance.version_id, self.wall())
        if held:
            _log.warning("instance %s: %d requests that it held are queued again", instance_id, len(held))
        over = replace(self._get(instance_id), held=held, cleaned=True)
        try:
            # What it held must be stored before its journal goes.
            await self.requests.persisted.save([over])
            await self.backend.forget(instance_id)
        except AgentError as error:
            _log.error("%s", error)
            await asyncio.sleep(_RETRY_SECONDS)
            return
        self._set(replace(self._get(instance_id), held=held, cleaned=True))

    async def _forget(self, instance_id: str) -> None:
        try:
            await self.requests.persisted.forget(instance_id)
        except StoreError as error:
            _log.warning("instance %s stays known for now: %s", instance_id, error)
            await asyncio.sleep(_RETRY_SECONDS)
            return
        instance = self.requests.instances.pop(instance_id)
        if not self.requests.of(instance.request_id):
            self.requests.removed.discard(instance.request_id)

    async def _follow_events(self) -> None:
        async for event in self.backend.watch():
            instance = self.requests.instances.get(event.instance_id)
            if instance is None:
                continue
            if isinstance(event, Ended):
                event = replace(event, final=event.final or not self.backend.restarts)
                if not instance.is_ending:
                    _log.warning("instance %s ended: %s", instance.id, event.reason)
            self._record_event(instance, event)
            self._set(after_event(instance, event, now=self.monotonic(), wall=self.wall()))

    def _record_event(self, instance: ManagedInstance, event: Event) -> None:
        match event:
            case Ready():
                self.telemetry.ready(instance.id)
            case Progress(_, part, at):
                self.telemetry.part(instance.id, part, at)
            case Ended(_, reason, category) if not instance.is_final:
                self.telemetry.ended(instance, category.value, reason)
                if self.targets is not None:
                    self.targets.set_address(instance.id, None)

    async def _store(self) -> bool:
        """Store what has changed. Return False if that has to be tried again."""
        try:
            await self.requests.drop_expired()
            await self.requests.persisted.save(list(self.requests.instances.values()))
        except StoreError as error:
            # It may last for minutes, so only the first one is worth an error.
            first = self._store_pause == _RETRY_SECONDS
            _log.log(logging.ERROR if first else logging.DEBUG, "trying again: %s", error)
            self._store_pause = min(2 * self._store_pause, _LONGEST_SLEEP_SECONDS)
            return False
        self._store_pause = _RETRY_SECONDS
        if self.targets is not None:
            await self.targets.update(list(self.requests.instances.values()))
        return True

    def end_all(self, reason: str, cause: Cause) -> list[str]:
        """End all instances, and return their ids."""
        alive = [each for each in self.requests.instances.values() if not each.is_ending]
        for instance in alive:
            self.requests.end(instance, reason, cause)
        return [each.id for each in alive]

    async def _shut_down(self) -> None:
        _log.info("stopping: ending %d instances", len(await self.backend.list()))
        await self.backend.close(self.requests.grace)
        alive = {each.instance_id for each in await self.backend.list()}
        for instance in list(self.requests.instances.values()):
            if instance.id not in alive:
                reason, again = "the agent was stopped", not (instance.is_task and instance.has_run)
                interrupt = transitions.interrupted if again else transitions.lost
                stopped = interrupt(instance, reason, self.wall())
                self.requests.instances[instance.id] = over = transitions.completed(stopped, self.wall())
                if over.is_final and not over.cleaned:
                    await self._clean(over.id)
        await self._store()
