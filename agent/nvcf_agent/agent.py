"""The agent of one cluster: takes messages in, makes a backend run what they ask for, reports every state."""

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
from nvcf_agent.prometheus_sd import TargetsFile
from nvcf_agent.records import Published, Records
from nvcf_agent.requeue import HandBack
from nvcf_agent.state import transitions
from nvcf_agent.state.actions import (
    KEEP_FINISHED_SECONDS,
    Clean,
    Delete,
    Forget,
    GiveUp,
    Settle,
    Start,
    next_action,
    next_retry,
)
from nvcf_agent.state.inventory import Inventory
from nvcf_agent.state.managed_instance import DEFAULT_GRACE_SECONDS, Request
from nvcf_agent.state.message_handlers import take_creation, take_termination
from nvcf_agent.state.persisted_state import Memory
from nvcf_agent.state.record_changes import Absences
from nvcf_agent.state.transitions import Ended, Event, Ready, after_event, after_failed_start
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_agent.tokens import TokenSource
from nvcf_broker.errors import BrokerError
from nvcf_broker.kv import KvMirror
from nvcf_proto.compute import MESSAGE_MAX_AGE_SECONDS, CreationMessage, GpuPool, TerminationMessage
from nvcf_proto.models import FunctionVersion
from nvcf_proto.settings import INFERENCE_READY_TIMEOUT

_log = logging.getLogger(__name__)

# Level-triggered: even if every wake-up were lost, this is how late the agent would notice.
_LONGEST_SLEEP_SECONDS = 5.0
_RETRY_SECONDS = 0.5
# A record or version that is not seen may only be late; what is gone for so long is gone.
_GONE_AFTER_SECONDS = 5.0
_VERSION_SECONDS = 2.0


@dataclass
class Agent:
    """One cluster's agent. Owns every record with its cluster's id, once it has taken it on."""

    cluster: str
    backend: Backend
    memory: Memory
    records: Records
    versions: KvMirror[FunctionVersion]
    tokens: TokenSource
    endpoints: Endpoints
    inventory: Inventory
    telemetry: AgentTelemetry
    worker_telemetry: WorkerTelemetry = NO_TELEMETRY
    accounts: AccountTelemetry | None = None
    targets: TargetsFile | None = None
    hand_back: HandBack | None = None
    grace: float = DEFAULT_GRACE_SECONDS
    ready_timeout: float = INFERENCE_READY_TIMEOUT
    keep_finished: float = KEEP_FINISHED_SECONDS
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _requests: dict[str, Request] = field(default_factory=dict)
    _busy: set[str] = field(default_factory=set)
    _urgent: dict[str, float] = field(default_factory=dict)
    _absences: Absences = field(default_factory=lambda: Absences(_GONE_AFTER_SECONDS))
    _intake: asyncio.Lock = field(default_factory=asyncio.Lock)
    _stopping: bool = False

    # --- from one life of the agent to the next

    async def adopt(self) -> None:
        """Take over what an earlier run remembered, and end what belongs to nothing. Raises `StoreError`."""
        mine = {each.id: each for each in await self.memory.load(self.cluster)}
        await self.backend.prepare({each.id for each in mine.values() if not each.is_final})
        running = {each.instance_id: each for each in await self.backend.list()}
        for request in mine.values():
            there = running.get(request.id)
            if there is not None:
                now = self.monotonic()
                self._requests[request.id] = replace(
                    request, has_process=True, pid=there.pid, waiting_since=now, launched_at=now
                )
            else:
                text = "the agent was restarted"
                self._requests[request.id] = transitions.interrupted(request, text, self.wall())
        for instance_id in running.keys() - mine.keys():
            _log.warning("ending instance %s: nobody asked for it", instance_id)
            await self.backend.delete(instance_id, 0)

    def requests(self) -> list[Request]:
        """All requests as they are now."""
        return list(self._requests.values())

    def pools(self) -> tuple[GpuPool, ...]:
        """What the cluster has and what of it is free."""
        return self.inventory.pools(each.held for each in self._requests.values())

    # --- messages

    async def create(self, body: bytes) -> None:
        """Take on what a creation message asks for. Raises `InvalidRecord` and `StoreError`."""
        message = CreationMessage.from_json(body)
        async with self._intake:
            taken = take_creation(
                message,
                cluster=self.cluster,
                inventory=self.inventory,
                held=[each.held for each in self._requests.values()],
                known=self._requests.keys() | self.memory.ended.keys(),
                records=self.records.by_id(message.version_id, message.instance_ids),
                wall=self.wall(),
                draining=self._stopping,
            )
            for text in taken.ignored:
                _log.info("creation message %s: %s", message.message_id, text)
            await self.memory.save(taken.requests)
            for request in taken.requests:
                self._set(request)
        self.wake()

    async def terminate(self, body: bytes) -> None:
        """End what a termination message names. Raises `InvalidRecord` and `StoreError`."""
        message = TerminationMessage.from_json(body)
        async with self._intake:
            wall = self.wall()
            ended = take_termination(message, cluster=self.cluster, known=self._requests, wall=wall)
            await self.memory.save(ended.requests)
            for request in ended.requests:
                self._urgent[request.id] = request.grace
                self._set(request)
            if ended.unknown:
                until = wall + MESSAGE_MAX_AGE_SECONDS
                await self.memory.save_ended(ended.unknown, until=until, wall=wall)
        self.wake()

    # --- the loop

    def wake(self) -> None:
        """Look again now: something may have changed."""
        self.woken.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then end in order what cannot live without the agent.

        When cancelled instead, that is ended at once and remembered as it was.
        """
        try:
            async with asyncio.TaskGroup() as group:
                events = group.create_task(self._follow_events())
                stopper = group.create_task(self._wake_on(stop))
                while not stop.is_set():
                    await self._round(group)
                stopper.cancel()
                # From here on an end is the agent's own doing and says nothing about the function.
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
        """One look at everything, and the wait until there may be something to do again."""
        self.woken.clear()
        self._end_deleted_versions()
        now, wall = self.monotonic(), self.wall()
        for request in list(self._requests.values()):
            self._act(group, request, now, wall)
        complete = await self._report()
        idle = [each for each in self._requests.values() if each.id not in self._busy]
        delay = min(_LONGEST_SLEEP_SECONDS, next_retry(idle, self.monotonic()))
        if not complete:
            delay = min(delay, _RETRY_SECONDS)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self.woken.wait()

    def _act(self, group: asyncio.TaskGroup, request: Request, now: float, wall: float) -> None:
        urgent = self._urgent.pop(request.id, None)
        if request.id in self._busy:
            if urgent is not None and request.has_process:
                # Something is being done for it already; what that is must not take longer than it now has.
                group.create_task(self.backend.delete(request.id, urgent))
            return
        action = next_action(
            request, now, wall, ready_timeout=self.ready_timeout, keep_finished=self.keep_finished
        )
        match action:
            case Start():
                self._set(transitions.creating(request, wall=wall))
                self._spawn(group, request.id, lambda: self._start(request.id))
            case Delete(grace):
                self._spawn(group, request.id, lambda: self.backend.delete(request.id, grace))
            case GiveUp(verdict):
                self._set(transitions.given_up(request, verdict))
                self._spawn(group, request.id, lambda: self.backend.delete(request.id, self.grace))
            case Settle():
                self._set(transitions.settled(request, wall))
                self.wake()
            case Clean():
                self._spawn(group, request.id, lambda: self._clean(request.id))
            case Forget():
                self._spawn(group, request.id, lambda: self._forget(request.id))

    def _spawn(self, group: asyncio.TaskGroup, instance_id: str, work: Callable[[], Awaitable[None]]) -> None:
        self._busy.add(instance_id)

        async def run() -> None:
            try:
                await work()
            finally:
                self._busy.discard(instance_id)
                self.wake()

        group.create_task(run(), name=f"work on instance {instance_id}")

    def _set(self, request: Request) -> None:
        before = self._requests.get(request.id)
        if before is None or before.phase is not request.phase:
            level = logging.WARNING if request.category is not None else logging.INFO
            reason = f" ({request.category}: {request.reason})" if request.category is not None else ""
            name = request.order.function_name
            _log.log(level, "instance %s of %s: %s%s", request.id, name, request.phase.value, reason)
        self._requests[request.id] = request
        self.changed.set()

    # --- what is done for one instance

    async def _start(self, instance_id: str) -> None:
        order, share = self._requests[instance_id].order, self._requests[instance_id].share
        version = await self._version(order.version_id)
        trace = self.telemetry.starting(self._requests[instance_id])
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
            if self._stopping or self._requests[instance_id].is_ending:
                self.telemetry.failed(instance_id, "not wanted any more")
                return
            running = await self.backend.create(spec)
        except (StartError, LaunchError, Refused) as error:
            _log.warning("instance %s cannot start: %s", instance_id, error)
            self.telemetry.failed(instance_id, str(error))
            request = self._requests[instance_id]
            self._set(after_failed_start(request, error, now=self.monotonic(), wall=self.wall()))
            return
        if self.targets is not None:
            self.targets.serves(instance_id, running.metrics)
        self._set(
            transitions.launched(
                self._requests[instance_id],
                pid=running.pid,
                health_port=running.health_port,
                log_path=running.log_path,
                now=self.monotonic(),
                wall=self.wall(),
            )
        )

    async def _version(self, version_id: str) -> FunctionVersion | None:
        """Its record, which may come later than an order for it: they take different ways."""
        with contextlib.suppress(TimeoutError):
            await self.versions.wait_for(lambda known: version_id in known, _VERSION_SECONDS)
        return self.versions.get(version_id)

    async def _clean(self, instance_id: str) -> None:
        if self.hand_back is not None:
            await self.hand_back.of(instance_id, self._requests[instance_id].order.version_id)
        await self.backend.forget(instance_id)
        self._requests[instance_id] = replace(self._requests[instance_id], cleaned=True)

    async def _forget(self, instance_id: str) -> None:
        try:
            await self.records.remove(self._requests[instance_id])
            await self.memory.forget(instance_id)
        except (BrokerError, StoreError) as error:
            _log.warning("instance %s stays listed: %s", instance_id, error)
            await asyncio.sleep(_RETRY_SECONDS)
            return
        del self._requests[instance_id]
        self._absences.drop(instance_id)

    async def _follow_events(self) -> None:
        async for event in self.backend.watch():
            request = self._requests.get(event.instance_id)
            if request is None:
                continue
            if isinstance(event, Ended) and not request.is_ending:
                _log.warning("instance %s ended: %s", request.id, event.reason)
            self._tell(request, event)
            self._set(after_event(request, event, now=self.monotonic(), wall=self.wall()))
            self.wake()

    def _tell(self, request: Request, event: Event) -> None:
        match event:
            case Ready():
                self.telemetry.ready(request.id)
            case Ended(_, reason, category):
                self.telemetry.ended(request, category.value, reason)
                if self.targets is not None:
                    self.targets.serves(request.id, None)

    # --- reporting

    def _end_deleted_versions(self) -> None:
        if not self.versions.is_ready:
            return
        for request in list(self._requests.values()):
            gone = request.order.version_id not in self.versions
            if not request.is_ending and self._absences.lasts(
                ("version", request.id), gone, self.monotonic()
            ):
                self._end(request, "its version was deleted")

    def _end(self, request: Request, reason: str) -> None:
        self._set(transitions.terminating(request, reason, self.grace, self.wall()))
        self.wake()

    async def _report(self) -> bool:
        """Bring store and bucket up to date; False if that has to be tried again."""
        try:
            await self.memory.save(self._requests.values())
        except StoreError as error:
            _log.error("%s", error)
            return False
        listed = list(self._requests.values())
        if self.targets is not None:
            await self.targets.update(listed)
        result = await self.records.publish(listed, self.memory.ended, self.wall(), self.keep_finished)
        self._take_in(listed, result)
        return result.complete

    def _take_in(self, listed: list[Request], result: Published) -> None:
        for request in listed:
            current = self._requests.get(request.id)
            if current is None:
                continue
            if request.id in result.written and not current.published:
                self._requests[request.id] = current = replace(current, published=True)
            gone = request.id in result.missing
            lasts = self._absences.lasts(("record", request.id), gone, self.monotonic())
            if current.is_ending:
                continue
            if lasts:
                self._end(current, "its record was removed")
            elif request.id in result.closed:
                self._end(current, result.closed[request.id])

    async def _shut_down(self) -> None:
        _log.info("stopping: ending %d instances", len(await self.backend.list()))
        await self.backend.close(self.grace)
        alive = {each.instance_id for each in await self.backend.list()}
        for request in list(self._requests.values()):
            if request.id not in alive:
                stopped = transitions.interrupted(request, "the agent was stopped", self.wall())
                self._requests[request.id] = transitions.settled(stopped, self.wall())
        await self._report()
