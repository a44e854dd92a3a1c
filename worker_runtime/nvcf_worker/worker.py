"""The worker: start-up, the broker session, token refresh, requests, leaving."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import nats.errors

from nvcf_proto import settings
from nvcf_proto.environment import SHARED_CONFIG_DIR
from nvcf_worker import journal as journals
from nvcf_worker.active import ActiveRequest, End
from nvcf_worker.assets import HttpClient
from nvcf_worker.attach import AttachClient
from nvcf_worker.config import WorkerConfig
from nvcf_worker.conversation import poll_due
from nvcf_worker.deliveries import exhausted, slotless_delay
from nvcf_worker.enrolment import Enrolment
from nvcf_worker.errors import InstanceBroken, JournalError, MalformedWork, WorkerError
from nvcf_worker.execution import Executor
from nvcf_worker.files import ProgressFiles
from nvcf_worker.function_headers import constant_headers
from nvcf_worker.handlers import Handler
from nvcf_worker.health import health_server
from nvcf_worker.inflight import NAK, TERMINATE, InFlight, nak_later
from nvcf_worker.limits.adaptive import Adaptive
from nvcf_worker.limits.measured import MeasuredExecutor
from nvcf_worker.link import open_connection
from nvcf_worker.loading import RunBlocking, begin_all, end_all
from nvcf_worker.puller import ConsumerLimits
from nvcf_worker.replies import ReplyInbox
from nvcf_worker.request import FunctionContext
from nvcf_worker.runner import Runner
from nvcf_worker.session import Session
from nvcf_worker.slots import Slots
from nvcf_worker.threads import ThreadPool
from nvcf_worker.tunnel import Tunnels
from nvcf_worker.watch import LoopWatch
from nvcf_worker.wiring import channels, services
from nvcf_worker.work import parse_work

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger("nvcf_worker")

TICK = 0.5
HAND_BACK_WAIT = 1.0
FLUSH_TIMEOUT = 5
TAKEN = b""
"""Answer to a poll: somebody works on the request."""


class Worker:
    """One worker process' runtime. `grace_seconds` is how long `stop` lets requests finish."""

    def __init__(
        self,
        handler: Handler,
        config: WorkerConfig,
        *,
        grace_seconds: float = 25.0,
        adaptive: Adaptive | None = None,
    ) -> None:
        self._handler = handler
        self._config = config
        self._grace = grace_seconds
        self._adaptive = adaptive
        self._enrolment = Enrolment(config)
        self._attach = AttachClient()
        self._slots = Slots(config.concurrency, self._slot_freed)
        self._stopping = asyncio.Event()
        self._draining = False
        self._session: Session | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = FunctionContext(config.function_id, config.version_id, [])
        self._tunnels = Tunnels(
            config.session_port,
            config.function_id,
            config.version_id,
            lambda: None if self._session is None else self._session.connection,
        )
        self._stores = HttpClient()
        self._broken: str | None = None
        self._inflight: InFlight
        self._runner: Runner
        self._blocking: RunBlocking

    @property
    def ready(self) -> bool:
        """Whether requests can arrive."""
        return (
            not self._draining
            and not self._slots.paused
            and self._session is not None
            and self._session.ready
        )

    @property
    def in_work(self) -> int:
        """Requests that were taken and are not yet acknowledged."""
        return len(self._inflight)

    @property
    def free_slots(self) -> int:
        """Places for further requests."""
        return self._slots.free

    def stop(self, grace_seconds: float | None = None) -> None:
        """Take no more requests, finish those in work, then return from `run`.

        `grace_seconds` replaces the time that requests have for that; with 0 they are handed back at once.
        """
        if grace_seconds is not None:
            self._grace = grace_seconds
        self._stopping.set()

    def limit_slots(self, source: str, limit: int) -> None:
        """Have at most so many requests in work from now on, as far as `source` knows."""
        self._slots.set_limit(source, limit)

    def pause(self) -> None:
        """Take no more requests until `resume`, and do not count as ready; those in work go on."""
        self._slots.paused = True
        self._slot_freed()

    def resume(self) -> None:
        """Take requests again."""
        self._slots.paused = False
        self._slot_freed()

    async def run(self) -> None:
        """Serve until `stop`. Raises ConfigurationError or StartupError when it cannot get to work."""
        loop = asyncio.get_running_loop()
        pool = ThreadPool(loop)
        self._inflight = InFlight(self._open_journal())
        self._blocking = lambda call: pool.start(lambda _: call())
        self._runner = Runner(
            self._executor(pool, loop),
            channels(self._config, self._attach, self._replies, self._listen),
            await asyncio.to_thread(services, self._config, self._stores, self._enrolment, self._break),
            self._inflight,
            lambda: self._context,
            self._release,
            self._tunnels,
        )
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(self._attach.close)
                stack.push_async_callback(self._stores.close)
                await stack.enter_async_context(health_server(self._config.health_port, lambda: self.ready))
                stack.push_async_callback(self._unload)
                await self._run_until_stopped()
            if self._broken is not None:
                raise InstanceBroken(self._broken)
        except BaseExceptionGroup as group:
            known = group.subgroup(WorkerError)
            if known is None:
                raise
            raise _first(known) from None
        finally:
            pool.close()
            self._inflight.close()

    def _executor(self, pool: ThreadPool, loop: asyncio.AbstractEventLoop) -> Executor:
        if self._adaptive is None:
            return Executor(self._handler, pool, loop)
        resize = functools.partial(self.limit_slots, "latency")
        return MeasuredExecutor(self._handler, pool, loop, self._adaptive, resize)

    def _break(self, reason: str) -> None:
        """A handler found the instance broken: not ready from now on, drained, then `run` raises."""
        if self._broken is None:
            self._broken = reason
            self.stop()

    async def _unload(self) -> None:
        await end_all(self._handler.loading, self._blocking)

    async def _listen(self, request_id: str) -> Callable[[], Coroutine[Any, Any, None]] | None:
        return None if self._session is None else await self._session.listen(request_id)

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
        enrolled = time.monotonic() - started
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._enrolment.keep(self._standing_changed))
            tasks.create_task(self._housekeeping())
            tasks.create_task(LoopWatch(self._handler.name, lambda: self._inflight).run())
            tasks.create_task(ProgressFiles(self._inflight).watch())
            await begin_all(self._handler.loading, self._blocking)
            limit: float | None = settings.CONNECT_START_TIMEOUT - enrolled
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
            if self._session is not None:
                await self._tunnels.listen_again(self._session.connection)
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
            self._inflight.tick(time.time())
            if self._session is not None:
                self._session.replies.expire(now)
                self._session.wake()

    # --- requests --------------------------------------------------------------------------------

    async def polled(self, message: Msg) -> None:
        """A poll: say that the request is in work here, if it is; the answer goes through the poll's door."""
        active = self._inflight.get(message.subject.rpartition(".")[2])
        if active is None or active.conversation is None or active.conversation.closed:
            return
        try:
            poll = parse_work(message.data, "", message.headers, region="", now=time.time())
        except MalformedWork as error:
            log.error("ignored a malformed poll on %s: %s", message.subject, error)
            return
        await self._inflight.send(message.reply, TAKEN)
        active.conversation.polled(poll.door, poll_due(poll))

    async def receive(self, message: Msg, region: str, limits: ConsumerLimits) -> None:
        """Take a message of a request stream: start it, or hand it back when there is no slot."""
        try:
            work = parse_work(message.data, message.reply, message.headers, region=region, now=time.time())
        except MalformedWork as error:
            log.error("dropped a malformed message on %s: %s", message.subject, error)
            await self._inflight.send(message.reply, TERMINATE)
            return
        present = self._inflight.get(work.request_id)
        if present is not None:
            self._inflight.adopt_redelivery(present, work, limits.ack_wait)
            return
        # The last delivery is only answered, which needs no slot; handed back it would never come again.
        last = exhausted(work.attempt, limits.max_deliver)
        if not last and (self._draining or not self._slots.take()):
            back = NAK if self._draining else nak_later(slotless_delay(work.attempt))
            await self._inflight.send(message.reply, back)
            return
        active = self._inflight.add(work, limits)
        active.holds_slot = not last
        active.task = asyncio.create_task(self._runner.run(active))
        self._tasks.add(active.task)
        active.task.add_done_callback(self._tasks.discard)

    def cancel_request(self, request_id: str) -> None:
        """A cancel broadcast: stop the request if it is one of ours."""
        active = self._inflight.get(request_id)
        if active is not None and not self._tunnels.caller_left(request_id):
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
