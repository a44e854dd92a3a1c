"""One broker connection and what depends on it: subscriptions, pulls, inline replies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

import nats.errors

from nvcf_broker.requests import ReplyInbox
from nvcf_proto import settings, subjects
from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.control.registration import Registration
from nvcf_worker.queue.connect import open_connection
from nvcf_worker.queue.planner import Slots
from nvcf_worker.queue.puller import Provision, Receiver, RegionPuller

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

log = logging.getLogger("nvcf_worker")

LISTEN_TIMEOUT = 2


class Owner(Receiver, Protocol):
    """Gets what arrives on a session."""

    def cancel_request(self, request_id: str) -> None:
        """Handle a cancel broadcast."""

    async def polled(self, message: Msg) -> None:
        """Handle a poll of a request that may be in flight here."""


class Session:
    """One broker connection in use. `regions` in order of preference.

    `on_ready(first)` is awaited when the connection is open (again), before anything is pulled.
    """

    def __init__(
        self,
        config: WorkerConfig,
        connection: Client,
        regions: tuple[str, ...],
        slots: Slots,
        owner: Owner,
        provision: Provision,
        on_ready: Callable[[bool], Awaitable[None]],
    ) -> None:
        self.connection = connection
        self.replies = ReplyInbox(
            connection, subjects.worker_inbox_prefix(config.version_id, config.instance_id)
        )
        self._config = config
        self._regions = regions
        self._slots = slots
        self._owner = owner
        self._provision = provision
        self._on_ready = on_ready
        self._pullers: list[RegionPuller] = []
        self._changed = asyncio.Event()
        self._reconnected = False
        self._lame_duck = False
        self._stopping = False

    @property
    def ready(self) -> bool:
        """Return whether requests of at least one region can arrive."""
        return self.connection.is_connected and any(puller.ready for puller in self._pullers)

    async def listen(self, request_id: str) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """Subscribe to the polls of one request (protocol.md, section 2.8); return how to unsubscribe.

        Only for requests of gateways that do not know the version's own polling subject. If the broker does
        not permit it, that is only logged.
        """
        try:
            subscription = await self.connection.subscribe(
                subjects.polling_subject(request_id), cb=self._owner.polled
            )
        except nats.errors.Error as error:
            log.debug("no polls of %s: %s", request_id, error)
            return None
        try:
            # The broker must know it before a caller gets a 202.
            await self.connection.flush(LISTEN_TIMEOUT)
        except (nats.errors.Error, TimeoutError) as error:
            log.debug("polls of %s come later: %s", request_id, error)

        async def end() -> None:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

        return end

    def wake(self) -> None:
        """Wake the pullers because a slot became free; the preferred region pulls first."""
        for puller in self._pullers:
            puller.wake()

    def set_regions(self, regions: tuple[str, ...]) -> None:
        """Pull from these regions from now on."""
        if regions != self._regions and not self._stopping:
            log.info("regions changed to %s", ", ".join(regions))
            self._regions = regions
            self._changed.set()

    def reconnected(self) -> None:
        """Handle a reconnect."""
        self._reconnected = True
        self._changed.set()

    def closed(self) -> None:
        """Handle that the connection is closed for good."""
        self._changed.set()

    def denied(self, subject: str) -> None:
        """Handle a subject that the broker does not permit, e.g. one of our extensions of the protocol."""
        known = (
            subjects.version_polling_subject(self._config.version_id, "*"),
            subjects.fallback_subject(self._config.version_id),
        )
        self.replies.denied(subject)
        level = logging.INFO if subject in known else logging.WARNING
        log.log(level, "the broker does not permit the subject %s", subject)

    def lame_duck(self) -> None:
        """Handle a server that is about to leave."""
        self._lame_duck = True
        self._changed.set()

    async def run(self) -> None:
        """Work until the connection is closed for good."""
        try:
            await self.replies.start()
            await self.connection.subscribe(
                subjects.cancel_subject(self._config.version_id), cb=self._on_cancel_broadcast
            )
            await self.connection.subscribe(
                subjects.version_polling_subject(self._config.version_id, "*"), cb=self._owner.polled
            )
            await self._on_ready(True)
            while not self.connection.is_closed:
                await self._pull_until_change()
        finally:
            self.replies.close()

    async def _pull_until_change(self) -> None:
        regions = self._regions
        async with asyncio.TaskGroup() as tasks:
            self._pullers = []
            for region in regions:
                preferred = self._pullers[-1] if self._pullers else None
                self._pullers.append(self._puller(region, preferred))
            running = [tasks.create_task(puller.run()) for puller in self._pullers]
            while regions == self._regions and not self.connection.is_closed:
                await self._changed.wait()
                self._changed.clear()
                await self._react()
            if not self.connection.is_closed:
                await self._withdraw()
            for task in running:
                task.cancel()

    def _puller(self, region: str, preferred: RegionPuller | None) -> RegionPuller:
        version_id, provision = self._config.version_id, self._provision
        return RegionPuller(
            self.connection, version_id, region, self._slots, self._owner, provision, preferred
        )

    async def _react(self) -> None:
        if self._reconnected:
            self._reconnected = False
            await self._on_ready(False)
            for puller in self._pullers:
                puller.look_up_again()
        if self._lame_duck:
            self._lame_duck = False
            delay = settings.LAME_DUCK_MAX_DELAY * random.random()  # noqa: S311 - spread of workers
            log.info("the broker is leaving; reconnecting in %.1f s", delay)
            await asyncio.sleep(delay)
            await asyncio.gather(*(puller.withdraw() for puller in self._pullers))
            await self.connection.force_reconnect()

    async def stop(self) -> None:
        """Pull nothing more, but stay connected. Returns when no further request can arrive."""
        self._stopping = True
        await self._withdraw()

    async def _withdraw(self) -> None:
        await asyncio.gather(*(puller.stop() for puller in self._pullers))

    async def _on_cancel_broadcast(self, message: Msg) -> None:
        self._owner.cancel_request(message.data.decode("ascii", "replace").strip())


async def open_session(
    config: WorkerConfig,
    registration: Registration,
    slots: Slots,
    owner: Owner,
    on_ready: Callable[[bool], Awaitable[None]],
    counts: Counter[str],
    *,
    idle: Callable[[], bool],
    limit: float | None,
) -> Session:
    """Connect to the broker and make a session; try for `limit` seconds (None: for ever).

    counts: where reconnects and lame-duck servers are counted. idle: returns whether to pull nothing.
    Raises StartupError.
    """
    session: Session | None = None

    async def on_reconnect() -> None:
        counts["reconnects"] += 1
        if session is not None:
            session.reconnected()

    async def on_closed() -> None:
        if session is not None:
            session.closed()

    async def on_lame_duck() -> None:
        counts["lame_duck"] += 1
        if session is not None:
            session.lame_duck()

    def on_denied(subject: str) -> None:
        if session is not None:
            session.denied(subject)

    connection = await open_connection(
        config,
        registration.token,
        on_reconnect=on_reconnect,
        on_closed=on_closed,
        on_lame_duck=on_lame_duck,
        on_denied=on_denied,
        limit=limit,
        counts=counts,
    )
    regions = () if idle() else registration.connected.regions
    session = Session(config, connection, regions, slots, owner, registration.service.provision, on_ready)
    return session
