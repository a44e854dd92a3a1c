"""The worker: start-up, the broker session, token refresh, requests, leaving."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import nats.errors

from nvcf_proto import settings
from nvcf_proto.environment import SHARED_CONFIG_DIR
from nvcf_worker import journal as journals
from nvcf_worker.active import ActiveRequest, End
from nvcf_worker.attach import AttachClient
from nvcf_worker.config import WorkerConfig
from nvcf_worker.delivery import Deliverer
from nvcf_worker.enrolment import Enrolment
from nvcf_worker.errors import JournalError, MalformedWork, WorkerError
from nvcf_worker.execution import Executor
from nvcf_worker.function_headers import constant_headers
from nvcf_worker.handlers import Handler
from nvcf_worker.health import health_server
from nvcf_worker.inflight import NAK, TERMINATE, InFlight
from nvcf_worker.link import open_connection
from nvcf_worker.replies import ReplyInbox
from nvcf_worker.request import FunctionContext
from nvcf_worker.runner import Runner
from nvcf_worker.session import Session
from nvcf_worker.slots import Slots
from nvcf_worker.threads import ThreadPool
from nvcf_worker.work import parse_work

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger("nvcf_worker")

TICK = 0.5
HAND_BACK_WAIT = 1.0
FLUSH_TIMEOUT = 5


class Worker:
    """One worker process' runtime. `grace_seconds` is how long `stop` lets requests finish."""

    def __init__(self, handler: Handler, config: WorkerConfig, *, grace_seconds: float = 25.0) -> None:
        self._handler = handler
        self._config = config
        self._grace = grace_seconds
        self._enrolment = Enrolment(config)
        self._attach = AttachClient()
        self._slots = Slots(config.concurrency, self._slot_freed)
        self._stopping = asyncio.Event()
        self._draining = False
        self._session: Session | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = FunctionContext(config.function_id, config.version_id, [])
        self._inflight: InFlight
        self._runner: Runner

    @property
    def ready(self) -> bool:
        """Whether requests can arrive."""
        return not self._draining and self._session is not None and self._session.ready

    @property
    def in_work(self) -> int:
        """Requests that were taken and are not yet acknowledged."""
        return len(self._inflight)

    @property
    def free_slots(self) -> int:
        """Places for further requests."""
        return self._slots.free

    def stop(self) -> None:
        """Take no more requests, finish those in work, then return from `run`."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`. Raises ConfigurationError or StartupError when it cannot get to work."""
        loop = asyncio.get_running_loop()
        pool = ThreadPool(loop)
        self._inflight = InFlight(self._open_journal())
        self._runner = Runner(
            Executor(self._handler, pool, loop),
            Deliverer(self._attach, self._replies),
            self._attach,
            self._inflight,
            lambda: self._context,
            self._release,
        )
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(self._attach.close)
                await stack.enter_async_context(health_server(self._config.health_port, lambda: self.ready))
                await self._run_until_stopped()
        except BaseExceptionGroup as group:
            known = group.subgroup(WorkerError)
            if known is None:
                raise
            raise _first(known) from None
        finally:
            pool.close()
            self._inflight.close()

    async def _run_until_stopped(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._work())]
            await self._stopping.wait()
            if self._session is not None:
                await self._drain(self._session)
            for task in running:
                task.cancel()

    async def _work(self) -> None:
        started = time.monotonic()
        await self._enrolment.begin()
        self._standing_changed()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._enrolment.keep(self._standing_changed))
            tasks.create_task(self._housekeeping())
            limit: float | None = settings.CONNECT_START_TIMEOUT - (time.monotonic() - started)
            while True:
                await self._one_session(limit)
                limit = None

    def _standing_changed(self) -> None:
        connected = self._enrolment.connected
        self._context = FunctionContext(
            self._config.function_id,
            self._config.version_id,
            constant_headers(self._config, connected.region),
        )
        if self._session is not None:
            self._session.set_regions(connected.regions)

    # --- broker ----------------------------------------------------------------------------------

    async def _one_session(self, limit: float | None) -> None:
        session: Session | None = None

        async def on_reconnect() -> None:
            if session is not None:
                session.reconnected()

        async def on_closed() -> None:
            if session is not None:
                session.closed()

        async def on_lame_duck() -> None:
            if session is not None:
                session.lame_duck()

        connection = await open_connection(
            self._config,
            self._enrolment.token,
            on_reconnect=on_reconnect,
            on_closed=on_closed,
            on_lame_duck=on_lame_duck,
            limit=limit,
        )
        # A connection that was lost while leaving is only needed for the last acknowledgements.
        regions = () if self._draining else self._enrolment.connected.regions
        session = Session(self._config, connection, regions, self._slots, self, self._enrolment.provision)
        self._inflight.use(connection)
        self._session = session
        try:
            await session.run()
        except* nats.errors.Error as group:
            # The connection went away in the middle of a call; the next session does all of it again.
            log.warning("broker session ended: %s", group.exceptions[0])
        finally:
            self._session = None
            await connection.close()
        if not self._stopping.is_set():
            log.warning("the broker closed the connection (%s); connecting anew", connection.last_error)
            await asyncio.sleep(TICK)

    async def connection_ready(self, *, first: bool) -> None:
        """A connection stands (again): settle what is due before anything is pulled."""
        if first:
            await self._inflight.send_unsent()
            await self._inflight.hand_back_leftovers()
            log.info("connected to the broker")
        await self._inflight.signal(time.monotonic())

    def _replies(self) -> ReplyInbox | None:
        return None if self._session is None else self._session.replies

    async def _housekeeping(self) -> None:
        """One ticker for everything that would otherwise need a timer a request."""
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            await self._inflight.signal_if_due(now)
            if self._session is not None:
                self._session.replies.expire(now)
                self._session.wake()

    # --- requests --------------------------------------------------------------------------------

    async def receive(self, message: Msg, region: str, ack_wait: float) -> None:
        """Take a message of a request stream: start it, or hand it back when there is no slot."""
        try:
            work = parse_work(message.data, message.reply, message.headers, region=region, now=time.time())
        except MalformedWork as error:
            log.error("dropped a malformed message on %s: %s", message.subject, error)
            await self._inflight.send(message.reply, TERMINATE)
            return
        present = self._inflight.get(work.request_id)
        if present is not None:
            self._inflight.adopt_redelivery(present, work, ack_wait)
            return
        if self._draining or not self._slots.take():
            await self._inflight.send(message.reply, NAK)
            return
        active = self._inflight.add(work, ack_wait)
        active.task = asyncio.create_task(self._runner.run(active))
        self._tasks.add(active.task)
        active.task.add_done_callback(self._tasks.discard)

    def cancel_request(self, request_id: str) -> None:
        """A cancel broadcast: stop the request if it is one of ours."""
        active = self._inflight.get(request_id)
        if active is not None:
            active.stop(End.CALLER_GONE)

    def _release(self, active: ActiveRequest) -> None:
        if active.holds_slot:
            active.holds_slot = False
            self._slots.give_back()

    def _slot_freed(self) -> None:
        if self._session is not None:
            self._session.wake()

    # --- leaving ---------------------------------------------------------------------------------

    async def _drain(self, session: Session) -> None:
        self._draining = True
        log.info("leaving: %d requests in work", len(self._inflight))
        await session.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._grace)
        await self._hand_back_rest()
        if self._session is not None and self._session.connection.is_connected:
            try:
                await self._session.connection.flush(FLUSH_TIMEOUT)
            except (nats.errors.Error, TimeoutError) as error:
                log.warning("the last acknowledgements may not have arrived: %s", error)
        log.info("left")

    async def _hand_back_rest(self) -> None:
        if not self._tasks:
            return
        log.warning("handing %d unfinished requests back to the queue", len(self._inflight))
        for active in self._inflight:
            active.stop(End.HANDED_BACK)
        await asyncio.wait(self._tasks, timeout=HAND_BACK_WAIT)
        # Threads cannot be interrupted; their requests go back all the same, nobody waits for them here.
        for active in self._inflight:
            await self._inflight.settle(active, NAK)

    def _open_journal(self) -> journals.Journal | None:
        path = self._config.shared_dir / journals.FILE_NAME
        try:
            self._config.shared_dir.mkdir(parents=True, exist_ok=True)
            return journals.Journal.open(path, self._config.instance_id, 2 * self._config.concurrency + 64)
        except (OSError, JournalError) as error:
            log.warning("no in-flight journal: %s; is %s writable?", error, SHARED_CONFIG_DIR)
            return None


def _first(group: BaseExceptionGroup[WorkerError]) -> WorkerError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, WorkerError) else WorkerError(str(error))
