"""The worker: start-up, broker sessions, requests, draining."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import nats.errors

from nvcf_otel.process import LoopLag
from nvcf_proto import settings
from nvcf_worker.control.config import WorkerConfig
from nvcf_worker.control.registration import Registration
from nvcf_worker.control.worker_service import WorkerService
from nvcf_worker.dispatcher import Dispatcher
from nvcf_worker.errors import InstanceBroken, Unhealthy, WorkerError, first_error
from nvcf_worker.exchange.assets import AssetFetcher, HttpClient
from nvcf_worker.exchange.attach import AttachClient
from nvcf_worker.exchange.exchanges import Exchanges
from nvcf_worker.exchange.files import default_directory
from nvcf_worker.exchange.large_results import LargeResults
from nvcf_worker.exchange.transport import GatewayTransport, Unlisten
from nvcf_worker.function.adaptive import Adaptive
from nvcf_worker.function.handlers import Handler
from nvcf_worker.function.headers import constant_headers
from nvcf_worker.function.loading import RunBlocking, begin_all, end_all, until_unhealthy
from nvcf_worker.function.request import FunctionContext
from nvcf_worker.function.time_limit import TimeLimit
from nvcf_worker.process.companions import cancelled
from nvcf_worker.process.exit_reason import ExitReason
from nvcf_worker.process.health import health_server
from nvcf_worker.process.leaving import leave_now
from nvcf_worker.queue.connect import close_connection
from nvcf_worker.queue.inflight import InFlight
from nvcf_worker.queue.journal import open_journal
from nvcf_worker.queue.planner import Slots
from nvcf_worker.queue.session import Session, open_session
from nvcf_worker.run.executor import Executor, MeasuredExecutor
from nvcf_worker.run.overtime import Overdue
from nvcf_worker.run.stall_detector import LOCK_FACTOR, LoopWatch
from nvcf_worker.run.threads import ThreadPool
from nvcf_worker.runner import Runner, Services
from nvcf_worker.sessions.tunnel import Tunnels
from nvcf_worker.telemetry.metrics import GaugeSources, observe
from nvcf_worker.telemetry.worker import NoTelemetry, WorkerTelemetry

log = logging.getLogger("nvcf_worker")

TICK = 0.5
FLUSH_TIMEOUT = 5


class Worker:
    """The runtime of a worker process. `grace_seconds` is how long requests may go on after `stop`."""

    def __init__(
        self,
        handler: Handler,
        config: WorkerConfig,
        *,
        grace_seconds: float = 25.0,
        adaptive: Adaptive | None = None,
        telemetry: NoTelemetry | None = None,
        time_limit: TimeLimit | None = None,
        stall_seconds: float = math.inf,
    ) -> None:
        self._handler = handler
        self._config = config
        self._grace = grace_seconds
        self._adaptive = adaptive
        self._telemetry = telemetry or NoTelemetry()
        self._time_limit = time_limit
        self._stall_seconds = stall_seconds
        self._loop_watch: LoopWatch
        self._overdue = Overdue()
        self._lag = LoopLag()
        self._registration = Registration(config)
        self._registration.renewal_failed = self._telemetry.refresh_failed
        self._attach = AttachClient()
        self._slots = Slots(config.concurrency, self._slot_freed)
        self._stopping = asyncio.Event()
        self._drained = asyncio.Event()
        self._draining = False
        self._session: Session | None = None
        self._context = FunctionContext(config.function_id, config.version_id, [])
        self._tunnels = Tunnels(
            None if config.session_port is None else (config.session_host, config.session_port),
            config.function_id,
            config.version_id,
            lambda: None if self._session is None else self._session.connection,
        )
        self._stores = HttpClient()
        self._broken: InstanceBroken | None = None
        self._inflight: InFlight
        self._exchanges: Exchanges
        self._dispatcher: Dispatcher
        self._blocking: RunBlocking

    @property
    def ready(self) -> bool:
        """Return whether requests can arrive."""
        session = self._session
        return not self._draining and not self._slots.paused and session is not None and session.ready

    @property
    def in_flight(self) -> int:
        """Return how many requests are not yet acknowledged."""
        return len(self._inflight)

    @property
    def free_slots(self) -> int:
        """Return how many slots are free."""
        return self._slots.free

    def stop(self, grace_seconds: float | None = None) -> None:
        """Take no more requests, finish those in flight, then return from `run`.

        grace_seconds: in place of the time of the constructor; with 0 requests go back to the queue at once.
        """
        if grace_seconds is not None:
            self._grace = grace_seconds
        self._stopping.set()

    def limit_slots(self, source: str, limit: int) -> None:
        """Let `source` limit the requests in flight from now on."""
        self._slots.set_limit(source, limit)

    def pause(self) -> None:
        """Take no more requests until `resume`, and be not ready; requests in flight go on."""
        self._slots.paused = True
        self._slot_freed()

    def resume(self) -> None:
        """Take requests again."""
        self._slots.paused = False
        self._slot_freed()

    async def run(self) -> None:
        """Serve until `stop`. Raises ConfigurationError or StartupError when it cannot start."""
        loop = asyncio.get_running_loop()
        pool = ThreadPool(loop)
        self._inflight = InFlight(open_journal(self._config))
        self._blocking = pool.run
        self._exchanges = Exchanges(
            GatewayTransport(
                self._config.version_id,
                self._attach,
                lambda: None if self._session is None else self._session.replies,
                self._listen,
            ),
            compatibility=not self._config.compatibility_disabled,
        )
        runner = Runner(
            self._executor(pool, loop),
            self._exchanges,
            await asyncio.to_thread(
                services, self._config, self._stores, self._registration.service, self.fail
            ),
            lambda: self._context,
            self._tunnels,
            self._telemetry,
            self._telemetry.dropped,
            self._time_limit,
            self._overdue,
        )
        self._dispatcher = Dispatcher(
            self._inflight,
            self._slots,
            self._exchanges,
            self._tunnels,
            runner.run,
            self._telemetry.dropped,
        )
        self._overdue.answered = self._dispatcher.answered
        try:
            async with AsyncExitStack() as stack:
                stack.push_async_callback(self._attach.close)
                stack.push_async_callback(self._stores.close)
                await stack.enter_async_context(
                    health_server(
                        self._config.health_port,
                        lambda: self.ready,
                        self._telemetry.metrics_page,
                        drained=self._drained,
                    )
                )
                self._loop_watch = LoopWatch(
                    self._handler.name,
                    lambda: self._inflight,
                    limit=self._stall_seconds,
                    lock_limit=LOCK_FACTOR * self._stall_seconds,
                    stuck=self._stalled,
                )
                stack.push_async_callback(cancelled, asyncio.create_task(self._loop_watch.run()))
                stack.push_async_callback(end_all, self._handler.loading, self._blocking)
                await self._run_until_stopped()
            if self._broken is not None:
                raise self._broken
        except BaseExceptionGroup as group:
            known = group.subgroup(WorkerError)
            if known is None:
                raise
            raise first_error(known) from None
        finally:
            pool.close()
            self._inflight.close()

    def _executor(self, pool: ThreadPool, loop: asyncio.AbstractEventLoop) -> Executor:
        if self._adaptive is None:
            return Executor(self._handler, pool, loop)
        resize = functools.partial(self.limit_slots, "latency")
        return MeasuredExecutor(self._handler, pool, loop, self._adaptive, resize)

    def fail(self, reason: str) -> None:
        """Drain and leave, because a request has shown that the instance is broken."""
        self._leave(InstanceBroken(reason))

    def unhealthy(self, reason: str) -> None:
        """Drain and leave, because the instance does not serve any more."""
        log.critical("this instance is unhealthy: %s", reason)
        self._leave(Unhealthy(reason))

    def _stalled(self, reason: str) -> None:
        """End the process: what would drain it runs on the event loop."""
        leave_now(self._config.shared_dir, ExitReason(Unhealthy.exit_code, Unhealthy.category, reason))

    def _leave(self, error: InstanceBroken) -> None:
        """Stop; `run` raises the first such error in the end."""
        if self._broken is None:
            self._broken = error
            self.stop()

    async def _listen(self, request_id: str) -> Unlisten | None:
        return None if self._session is None else await self._session.listen(request_id)

    async def _run_until_stopped(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(self._work())
            await self._stopping.wait()
            await self._drain(self._session)
            working.cancel()

    async def _work(self) -> None:
        started = time.monotonic()
        await self._registration.register()
        self._registration_changed()
        enrolled = time.monotonic() - started
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._registration.keep_renewed(self._registration_changed))
            tasks.create_task(self._housekeeping())
            tasks.create_task(self._exchanges.watch_progress_files())
            if isinstance(self._telemetry, WorkerTelemetry):
                self._observe(self._telemetry)
                tasks.create_task(self._lag.watch())
                if self._telemetry.metering is not None:
                    tasks.create_task(self._telemetry.metering.beat())
            setting_up = begin_all(self._handler.loading, self._blocking)
            await (setting_up if self._handler.elsewhere else self._telemetry.load(setting_up))
            self._loop_watch.serve()
            tasks.create_task(self._watch_health())
            limit: float | None = settings.CONNECT_START_TIMEOUT - enrolled
            while True:
                await self._one_session(limit)
                limit = None

    async def _watch_health(self) -> None:
        if self._handler.elsewhere:
            return
        reason = await until_unhealthy(self._handler.loading, self._blocking)
        self.unhealthy(reason)

    def _observe(self, telemetry: WorkerTelemetry) -> None:
        sources = GaugeSources(
            slots=lambda: self._slots.limit,
            busy=lambda: self._slots.busy,
            lost=lambda: len(self._overdue),
            overdue=lambda: self._overdue.count,
            connection=lambda: None if self._session is None else self._session.connection,
            regions=lambda: self._registration.connected.regions,
            broker_address=urlsplit(self._config.nats_servers[0]).hostname or "",
            lag=self._lag,
        )
        observe(telemetry.metrics, telemetry.requests.running, sources)

    def _registration_changed(self) -> None:
        connected = self._registration.connected
        self._context = FunctionContext(
            self._config.function_id,
            self._config.version_id,
            constant_headers(self._config, connected.region),
        )
        if self._session is not None:
            self._session.set_regions(connected.regions)

    # --- broker ----------------------------------------------------------------------------------

    async def _one_session(self, limit: float | None) -> None:
        session = await open_session(
            self._config,
            self._registration,
            self._slots,
            self._dispatcher,
            self._connection_ready,
            self._telemetry.broker,
            # A connection that was lost while leaving is only needed for the last acknowledgements.
            idle=lambda: self._draining,
            limit=limit,
        )
        connection = session.connection
        self._inflight.use(connection)
        self._session = session
        try:
            await session.run()
        except* nats.errors.Error as group:
            # The connection was lost in the middle of a call; the next session repeats it.
            log.warning("broker session ended: %s", group.exceptions[0])
        finally:
            self._session = None
            await close_connection(connection)
        if not self._stopping.is_set():
            log.warning("the broker closed the connection (%s); connecting anew", connection.last_error)
            await asyncio.sleep(TICK)

    async def _connection_ready(self, first: bool) -> None:
        """Settle what is due on a new connection, or after a reconnect, before anything is pulled."""
        if first:
            await self._inflight.send_unsent()
            await self._inflight.nak_orphans()
            if self._session is not None:
                await self._tunnels.listen_again(self._session.connection)
                await self._exchanges.listen_again()
            log.info("connected to the broker")
            self._telemetry.ready()
        await self._inflight.signal(time.monotonic())

    async def _housekeeping(self) -> None:
        """Run everything that would otherwise need a timer for each request."""
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            await self._inflight.signal_if_due(now)
            self._exchanges.tick(time.time())
            self._check_slots(now)
            if self._session is not None:
                self._session.replies.expire(now)
                self._session.wake()

    def _check_slots(self, now: float) -> None:
        """Leave when more than half of the slots are lost to handlers that do not end."""
        reason = self._overdue.unhealthy(self._slots.limit, now)
        if reason is not None and self._broken is None:
            log.critical("%s\n%s", reason, self._overdue.stacks())
            self.unhealthy(reason)

    def _slot_freed(self) -> None:
        if self._session is not None:
            self._session.wake()

    # --- draining ---------------------------------------------------------------------------------

    async def _drain(self, session: Session | None) -> None:
        self._draining = True
        self._dispatcher.draining = True
        log.info("leaving: %d requests in flight", len(self._inflight))
        if session is not None:
            await session.stop()
        await self._dispatcher.finish(self._grace)
        if self._session is not None and self._session.connection.is_connected:
            try:
                await self._session.connection.flush(FLUSH_TIMEOUT)
            except (nats.errors.Error, TimeoutError) as error:
                log.warning("the last acknowledgements may not have arrived: %s", error)
        self._drained.set()
        log.info("left")


def services(
    config: WorkerConfig, stores: HttpClient, platform: WorkerService, broken: Callable[[str], None]
) -> Services:
    """Make what requests need: directories, assets, large results. Blocks while it empties directories."""
    base = None
    if config.asset_dir is None or config.response_dir is None:
        base = default_directory(config.shared_dir, config.instance_id)
    return Services(
        config.asset_dir or (base or config.shared_dir) / "assets",
        config.response_dir or (base or config.shared_dir) / "responses",
        AssetFetcher(stores, platform, open_files=config.open_files),
        LargeResults(stores, platform),
        broken,
        config.open_files,
    )
