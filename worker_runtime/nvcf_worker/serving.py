"""`serve`: run a handler as this process' worker until it is stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nvcf_proto.environment import DEFAULT_SHARED_CONFIG_DIR, SHARED_CONFIG_DIR
from nvcf_worker.errors import HandlerError, WorkerError
from nvcf_worker.function.adaptive import Adaptive, choose, useful_slots
from nvcf_worker.function.handlers import Handler, classify, is_asgi
from nvcf_worker.process import companions as lifecycle
from nvcf_worker.process import exit_reason as exits
from nvcf_worker.process import logs
from nvcf_worker.process.imported import in_multiprocessing
from nvcf_worker.process.leaving import leave_now, leave_soon
from nvcf_worker.process.loops import run_to_end
from nvcf_worker.run import slot_limits
from nvcf_worker.run.processes.channel import is_child

if TYPE_CHECKING:
    from nvcf_worker.function.app import App
    from nvcf_worker.worker import Worker

log = logging.getLogger("nvcf_worker")

Take = Callable[[Any, dict[str, Any]], None]
"""Takes the handler and the other arguments of a call of `serve`."""

LOG_LEVEL = "NVCF_LOG_LEVEL"
"""[ext] Log level: `debug`, `info`, `warning` or `error`. Default: info."""

_served = threading.Event()
_capture_by: Take | None = None


def has_served() -> bool:
    """Return whether `serve` was called in this process."""
    return _served.is_set()


def mark_served() -> None:
    """Record that this process has done what it was started for."""
    _served.set()


def capture(take: Take | None) -> None:
    """Let `serve` only call `take` from now on, which has the function run elsewhere; None: serve again."""
    global _capture_by  # there is one `serve` a process
    _capture_by = take


def serve(
    handler: Callable[..., Any] | App | None = None,
    *,
    asgi: Callable[..., Any] | None = None,
    concurrency: int | Adaptive | None = None,
    isolation: Literal["thread", "process"] = "thread",
    processes: int | None = None,
    retry_crashed: bool = True,
    media_type: str | None = None,
    grace_seconds: float | None = None,
    time_limit: float | None = None,
    log_level: str | None = None,
    session_port: int | None = None,
    metrics: str | None = None,
) -> None:
    """Serve requests with `handler` until SIGTERM or SIGINT; returns when all requests are finished.

    handler: a function, coroutine function, generator or async generator with one argument, the
        request. Plain functions and generators get a `SyncRequest` and run on threads, the others get
        a `Request` and run on the event loop. An ASGI application (`scope, receive, send`) works, too.
    asgi: an ASGI 3 application, served in this process without a port; for one that cannot be
        recognised by its parameters.
    concurrency: requests in flight at once: a number, or `Adaptive(min=1, max=64)` for a limit found from
        latency. Default MAX_REQUEST_CONCURRENCY; where that is 1 or not set, what the `@batch` functions of
        the program can fill (twice the largest max_size), and a slot for each process.
    isolation: "thread" runs the handler in this process, "process" in child processes, so that a crash or
        a held interpreter lock costs no other request and not the connection to the platform.
    processes: how many children; default one for each attached GPU (each sees its own), else one.
    retry_crashed: requests of a child that died are run once more, each alone in a child, before their
        callers get an error.
    media_type: default Content-Type of results, e.g. "text/event-stream".
    grace_seconds: how long requests may go on after SIGTERM; default NVCF_GRACE_SECONDS, else 25. What does
        not finish goes back to the queue. A second signal ends the process at once.
    time_limit: seconds that one request may run; then its caller gets 504, a coroutine is cancelled, a child
        process killed, and a thread given up. The deployment's limit counts if it is lower.
    log_level: default NVCF_LOG_LEVEL, else "info".
    session_port: where on 127.0.0.1 this process' own server takes gRPC or WebSocket sessions; default
        INFERENCE_PORT. Each session holds one of the `concurrency` slots.
    metrics: HOST:PORT where Prometheus finds `/metrics`, or "health" for the health port; default
        NVCF_METRICS_ADDRESS, else nowhere.

    Does nothing while a process of multiprocessing imports the file for its functions.

    The settings come from the environment (protocol.md, section 5.1). Raises HandlerError for an unusable
    handler; exits with code 2 for an unusable environment and 1 when the platform or the broker does
    not take the worker, with the reason in the log.
    """
    arguments = locals()
    if in_multiprocessing():
        return
    _served.set()
    if _capture_by is not None:
        _capture_by(arguments.pop("handler"), arguments)
        return
    companion: lifecycle.Companion | None = None
    if asgi is not None or is_asgi(handler):
        from nvcf_worker.run.asgi.host import AsgiHost

        host = AsgiHost(asgi if asgi is not None else handler)
        handler, companion = host.handle, host
    if handler is None:
        raise HandlerError("serve() takes a handler or an ASGI application")
    checked = classify(handler, media_type)
    if is_child():
        from nvcf_worker.run.processes.child import serve_requests

        set_up_logging(log_level)
        serve_requests(checked, companion)
    if isolation == "process":
        from nvcf_worker.run.processes.setup import isolate

        checked, companion, concurrency = isolate(checked, processes, concurrency, retry=retry_crashed)
    elif isolation != "thread":
        raise HandlerError(f'isolation is {isolation!r}; it must be "thread" or "process"')
    run_worker(
        checked,
        companion,
        concurrency=concurrency,
        grace_seconds=grace_seconds,
        time_limit=time_limit,
        log_level=log_level,
        session_port=session_port,
        metrics=metrics,
    )


def run_worker(
    handler: Handler,
    companion: lifecycle.Companion | None,
    *,
    concurrency: int | Adaptive | None,
    grace_seconds: float | None,
    log_level: str | None,
    time_limit: float | None = None,
    session_port: int | None = None,
    session_host: str | None = None,
    metrics: str | None = None,
    cache_token: bool = True,
) -> None:
    """Run a worker to its end, as `serve` does, together with its companion.

    cache_token: whether newer worker tokens are kept in SHARED_CONFIG_DIR for a restart.

    The reason of its end is written to SHARED_CONFIG_DIR. Exits with the code of the WorkerError, if any.
    """

    async def work() -> str:
        # Imported here so that `import nvcf_worker` stays light and a wrong handler is reported at once.
        from nvcf_worker.control.config import WorkerConfig
        from nvcf_worker.function.time_limit import configured
        from nvcf_worker.run.stall_detector import stall_seconds
        from nvcf_worker.telemetry.setup import worker_telemetry
        from nvcf_worker.worker import Worker

        chosen = choose(concurrency, os.environ, useful=useful_slots())
        adaptive = chosen if isinstance(chosen, Adaptive) else None
        slots = chosen.max if isinstance(chosen, Adaptive) else chosen
        config = WorkerConfig.from_environment(
            os.environ, concurrency=slots, session_port=session_port, session_host=session_host
        )
        config = replace(config, cache_token=cache_token)
        async with worker_telemetry(config, metrics) as telemetry:
            worker = Worker(
                handler,
                config,
                grace_seconds=config.grace_seconds if grace_seconds is None else grace_seconds,
                adaptive=adaptive,
                telemetry=telemetry,
                time_limit=configured(time_limit, os.environ),
                stall_seconds=stall_seconds(os.environ),
            )
            slot_limits.use(worker if concurrency is None else None)
            log.info("serving %s with %d slots", handler.name, config.concurrency)
            return await _run(worker, companion)

    _served.set()
    set_up_logging(log_level)
    directory = _shared_directory()
    ended = exits.ExitReason(1, "internal-error", "")
    try:
        ended = exits.ExitReason(exits.DRAINED, "drained", run_to_end(work()))
    except WorkerError as error:
        log.critical("%s", error)
        ended = exits.ExitReason(error.exit_code, error.category, str(error))
        raise SystemExit(error.exit_code) from None
    except BaseException as error:
        ended = dataclasses.replace(ended, text=f"{type(error).__name__}: {error}")
        raise
    finally:
        exits.record(directory, ended)
        leave_soon(ended.code)


def _shared_directory() -> Path:
    return Path(os.environ.get(SHARED_CONFIG_DIR) or DEFAULT_SHARED_CONFIG_DIR)


def set_up_logging(level: str | None) -> None:
    """Set up logging with the level of the argument, else of the environment; exit if it is no level."""
    try:
        logs.set_up(level or os.environ.get(LOG_LEVEL) or "info")
    except ValueError as error:
        raise SystemExit(f"log level: {error}") from None


async def _run(worker: Worker, companion: lifecycle.Companion | None) -> str:
    reasons: list[str] = []

    def leave(reason: str) -> None:
        reasons.append(reason)
        worker.stop()

    if threading.current_thread() is threading.main_thread():
        listen_for_signals(leave)
    notice = os.environ.get(lifecycle.TERMINATION_NOTICE_FILE)
    watchers = [lifecycle.watch_for_notice(Path(notice), leave)] if notice else []
    work = worker.run() if companion is None else lifecycle.accompany(worker, companion)
    await lifecycle.beside(work, watchers)
    return reasons[0] if reasons else "the worker was stopped"


def listen_for_signals(leave: Callable[[str], None]) -> None:
    """Call `leave` on SIGTERM, SIGINT and SIGUSR1 (a notice of termination); end the process on a second one.

    SIGUSR1 counts neither as the first nor as the second signal: the platform sends SIGTERM after its notice.
    """
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > 1:
            log.critical("second signal; leaving now")
            why = f"{received[0].name}, then {number.name}: ended at once"
            leave_now(_shared_directory(), exits.ExitReason(128 + number, "killed", why))
        log.info("%s received", number.name)
        leave(f"{number.name} received")

    def on_notice() -> None:
        log.info("notice of termination: SIGUSR1 received")
        leave("notice of termination by SIGUSR1")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGUSR1, on_notice)
