"""The agent's side of the contract with the control plane: calls, queues, and what comes back.

See protocol.md, section 6.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from http import HTTPStatus

import nats.errors

from nvcf_agent.agent import Agent
from nvcf_agent.errors import AgentError, ControlPlaneError
from nvcf_agent.icms.client import IcmsClient, agent_version
from nvcf_agent.icms.heartbeat import DEFAULT_SECONDS, Beats
from nvcf_agent.icms.reconcile import compare
from nvcf_agent.icms.registration import Registrar, registration
from nvcf_agent.icms.reporter import Reporter
from nvcf_agent.messages import Consumer
from nvcf_agent.state.inventory import Inventory
from nvcf_agent.timings import Timings, growing_pause
from nvcf_broker.connection import BrokerClient, describe_error
from nvcf_broker.errors import BrokerError
from nvcf_proto.errors import ContractError
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.names import CREATION_STREAM, TERMINATION_STREAM
from nvcf_proto.icms.reports import (
    Heartbeat,
    HeartbeatAction,
    HeartbeatAnswer,
    KnownInstance,
    MaintenanceMode,
    PrefetchImage,
    Registration,
)

_log = logging.getLogger(__name__)

_LAST_CALLS_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 1.0
_CONNECT_PAUSES = (0.5, 10.0)
_DEAF_SECONDS = 5.0
"""So long the broker may be away until heartbeats say unhealthy."""

Connect = Callable[[], AbstractAsyncContextManager[BrokerClient]]
"""Opens a connection to the broker, with the identity of now. Raises `BrokerError`."""


@dataclass
class ControlPlane:
    """Runs everything between an agent and its control plane."""

    client: IcmsClient
    cluster_id: str
    timings: Timings = field(default_factory=Timings)
    heartbeat_seconds: float = DEFAULT_SECONDS
    attributes: Mapping[str, str] = field(default_factory=dict)
    maintenance: MaintenanceMode = MaintenanceMode.NONE
    cluster_name: str | None = None
    k8s_version: str | None = None
    on_prefetch: Callable[[Iterable[PrefetchImage]], None] | None = None
    """Takes the images that nodes are to have; None: the backend pulls none."""
    draining: bool = False
    stalled: bool = False
    """The agent cannot change anything in its cluster now: no new instances."""
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _always: asyncio.Event = field(default_factory=asyncio.Event)
    _destroyed: asyncio.Event = field(default_factory=asyncio.Event)
    _registered: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _doubtful: frozenset[str] = frozenset()
    _broker: BrokerClient | None = None
    _deaf_since: float | None = None

    def bind(self, agent: Agent) -> None:
        """Connect an agent to this control plane. Call it once, before anything runs."""
        self.agent = agent
        self.reporter = Reporter(self.client, agent.requests, self.timings)
        self.registrar = Registrar(
            self.client, self.registration, self.timings, lambda: bool(agent.requests.instances)
        )
        times = self.timings
        self.beats = Beats(
            self.client,
            self.heartbeat,
            self._on_heartbeat,
            self.heartbeat_seconds,
            retry=(times.retry_first, times.retry_longest),
        )
        agent.requests.on_change = self._on_change
        agent.requests.on_known = self.reporter.repeat
        self._refuse()
        self._always.set()

    def _on_change(self) -> None:
        self._changed.set()
        self.agent.wake()
        self.reporter.woken.set()
        self.beats.changed.set()

    def registration(self) -> Registration:
        """Return what is to be registered now."""
        return registration(
            self.agent.inventory,
            backend=self.agent.backend.name,
            heartbeat_seconds=self.heartbeat_seconds,
            attributes=dict(self.attributes),
            k8s_version=self.k8s_version,
            maintenance=self.maintenance,
        )

    def replace_inventory(self, inventory: Inventory) -> None:
        """Take over what the cluster has now, and register it."""
        if inventory != self.agent.inventory:
            self.agent.requests.replace_inventory(inventory)
            self.registrar.changed.set()

    def heartbeat(self) -> Heartbeat:
        """Return the next heartbeat."""
        return Heartbeat(
            status="unhealthy" if self.stalled or self._is_deaf() else "healthy",
            gpu_usage=self.agent.usage(),
            nvca_agent_version=agent_version(),
            cluster_name=self.cluster_name,
            maintenance_mode=self.maintenance.value,
            draining=self.draining,
        )

    def _is_deaf(self) -> bool:
        """Return whether the queues have not been read for a while: what is ordered would not arrive."""
        if self._broker is not None and self._broker.is_connected:
            self._deaf_since = None
            return False
        now = time.monotonic()
        self._deaf_since = now if self._deaf_since is None else self._deaf_since
        return now - self._deaf_since > _DEAF_SECONDS

    def _on_heartbeat(self, answer: HeartbeatAnswer) -> None:
        self.reporter.recovered()
        if answer.action is HeartbeatAction.SELF_DESTRUCT:
            self._destroyed.set()
            return
        if answer.report_again:
            self.reporter.repeat_all()
        if answer.maintenance is not None:
            self._set_maintenance(answer.maintenance)

    def _set_maintenance(self, text: str) -> None:
        try:
            wanted = MaintenanceMode(text)
        except ValueError:
            _log.warning("the control plane asks for an unknown maintenance mode: %s", text[:64])
            return
        if wanted is self.maintenance:
            return
        _log.info("maintenance mode: %s", wanted.value)
        self.maintenance = wanted
        self._refuse()
        self.registrar.changed.set()

    def set_stalled(self, stalled: bool) -> None:
        """Note whether the agent can change anything in its cluster."""
        self.stalled = stalled
        self._refuse()

    def _refuse(self) -> None:
        refusing = self.stalled or self.maintenance is not MaintenanceMode.NONE
        self.agent.requests.refusing = refusing or self.draining
        # Creations wait in the queue, terminations pass. Who drains also replaces: the control plane.
        (self._open.clear if refusing else self._open.set)()
        self.beats.changed.set()

    def consumers(self, client: BrokerClient) -> tuple[Consumer, Consumer]:
        """Return the two consumers of the cluster's messages."""
        timed, requests = self.agent.telemetry.timed, self.agent.requests
        create, terminate = timed("create", requests.create), timed("terminate", requests.terminate)
        return (
            Consumer(client, CREATION_STREAM, self.cluster_id, create, self._open),
            Consumer(client, TERMINATION_STREAM, self.cluster_id, terminate, self._always),
        )

    async def run(self, connect: Connect, stop: asyncio.Event, ready: Callable[[], None]) -> None:
        """Run agent and contract until `stop` is set. `ready` is called when the queues are read.

        When the control plane answers SELF_DESTRUCT, all instances end, and nothing more is sent. Raises
        `AgentError` when the control plane refuses the agent.
        """
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self.agent.run(stop))
            reporting = group.create_task(self._report())
            serving = group.create_task(self._serve(connect, ready))
            ends = [group.create_task(each.wait()) for each in (stop, self._destroyed)]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            serving.cancel()
            await asyncio.wait({serving})
            if self._destroyed.is_set():
                await self._self_destruct(stop)
                reporting.cancel()
                await stop.wait()
            elif self._registered.is_set():
                if self.agent.backend.restarts:
                    # The cluster gets no new instances, and those it ends are replaced elsewhere.
                    self.draining = True
                    await self.beats.beat()
                await asyncio.wait({running})
                reporting.cancel()
                await asyncio.wait({reporting})
                await self.reporter.flush(_LAST_CALLS_SECONDS)
            reporting.cancel()
            for each in ends:
                each.cancel()

    async def _report(self) -> None:
        await self._registered.wait()
        await self.reporter.run()

    async def _serve(self, connect: Connect, ready: Callable[[], None]) -> None:
        """Register, and take messages until cancelled."""
        answer = await self.registrar.start()
        self.cluster_name = answer.cluster_name
        self.agent.zone = answer.cluster_name or self.cluster_id
        self._registered.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.beats.run())
            group.create_task(self.registrar.run())
            group.create_task(self._reconcile())
            group.create_task(self.agent.requests.keep_waiting())
            if self.on_prefetch is not None:
                group.create_task(self._prefetch(self.on_prefetch))
            await self._read_queues(connect, ready)

    async def _read_queues(self, connect: Connect, ready: Callable[[], None]) -> None:
        failures = 0
        while True:
            try:
                async with connect() as client:
                    failures = 0
                    await self._read_from(client, ready)
            except BrokerError as error:
                failures += 1
                _log.warning("%s; trying again", error)
                await asyncio.sleep(growing_pause(*_CONNECT_PAUSES, failures, random.random()))  # noqa: S311

    async def _read_from(self, client: BrokerClient, ready: Callable[[], None]) -> None:
        """Take messages until the connection is closed for good. Raises `BrokerError`."""
        consumers = self.consumers(client)
        for consumer in consumers:
            await consumer.ensure()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each.run()) for each in consumers]
                self._broker = client
                ready()
                await client.wait_closed()
                for task in tasks:
                    task.cancel()
        except* (nats.errors.Error, OSError) as group:
            reasons = ", ".join(describe_error(each) for each in group.exceptions)
            raise BrokerError(f"cannot read the queues: {reasons}") from group
        finally:
            self._broker = None
            await self.agent.requests.release()

    async def _self_destruct(self, stop: asyncio.Event) -> None:
        """End all instances, and report the end of each."""
        _log.warning("the control plane has ended this cluster (SELF_DESTRUCT): ending all instances")
        requests = self.agent.requests
        requests.refusing = True
        self.agent.end_all("the control plane has ended this cluster", Cause.MAINTENANCE)
        while not stop.is_set() and requests.has_unreported_ends():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LONGEST_WAIT_SECONDS):
                    self._changed.clear()
                    await self._changed.wait()
        _log.warning("nothing runs any more; the agent is silent until it is stopped")

    async def _prefetch(self, take: Callable[[Iterable[PrefetchImage]], None]) -> None:
        """Ask now and then which images nodes are to have before there are instances."""
        while True:
            pause = self.timings.prefetch
            try:
                take((await self.client.prefetch()).images)
            except ControlPlaneError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    pause = self.timings.prefetch_unknown
                _log.info("images are not prefetched: %s", error)
            except (AgentError, ContractError) as error:
                _log.warning("images are not prefetched: %s", error)
            await asyncio.sleep(pause)

    async def _reconcile(self) -> None:
        """Compare the control plane's list of instances with the agent's, now and every few minutes."""
        while True:
            try:
                listed = await self.client.instances()
                await self._apply(listed.instances)
                pause = self.timings.reconcile
            except (AgentError, ContractError) as error:
                _log.warning("cannot compare instances with the control plane: %s", error)
                pause = min(self.timings.retry_longest, self.timings.reconcile)
            await asyncio.sleep(pause)

    async def _apply(self, listed: Iterable[KnownInstance]) -> None:
        requests = self.agent.requests
        found = compare(listed, requests.instances, requests.persisted.ended, self._doubtful)
        self._doubtful = found.doubtful
        for instance_id in found.end:
            reason = "the control plane wants it ended"
            requests.end(requests.instances[instance_id], reason, Cause.SYNC_ACTION)
        if found.unknown:
            _log.warning("the control plane knows instances that are not here: %s", ", ".join(found.unknown))
        await requests.end_unknown(found.unknown, Cause.SYNC_ACTION)
        for request_id in found.repeat:
            requests.tell_again(request_id)
