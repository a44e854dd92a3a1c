"""`serve`: run a handler as this process' worker until it is told to leave."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from nvcf_worker import logs
from nvcf_worker.errors import ConfigurationError, WorkerError
from nvcf_worker.handlers import Handler, classify

log = logging.getLogger("nvcf_worker")

DEFAULT_GRACE_SECONDS = 25.0
LOG_LEVEL = "NVCF_LOG_LEVEL"
"""Own addition: environment variable with the log level, `info` if unset."""

EXIT_STARTUP = 1
EXIT_CONFIGURATION = 2

_served = threading.Event()


def has_served() -> bool:
    """Whether `serve` was called in this process."""
    return _served.is_set()


def serve(
    handler: Callable[[Any], Any],
    *,
    concurrency: int | None = None,
    media_type: str | None = None,
    grace_seconds: float = DEFAULT_GRACE_SECONDS,
    log_level: str | None = None,
) -> None:
    """Serve requests with `handler` until SIGTERM or SIGINT; returns when everything in work is finished.

    handler: a function, coroutine function, generator or async generator with one argument, the
        request. Plain functions and generators get a `SyncRequest` and run on threads, the others get
        a `Request` and run on the event loop.
    concurrency: requests in work at once; default MAX_REQUEST_CONCURRENCY, else 1.
    media_type: Content-Type of results that do not say otherwise, e.g. "text/event-stream".
    grace_seconds: how long requests may go on after SIGTERM; what does not finish goes back to the
        queue. A second signal ends the process at once.
    log_level: default NVCF_LOG_LEVEL, else "info".

    The settings come from the environment (protocol.md section 5). Raises HandlerError for an unusable
    handler; exits with code 2 for an unusable environment and 1 when the platform or the broker does
    not take the worker, with the reason in the log.
    """
    _served.set()
    checked = classify(handler, media_type)
    try:
        logs.set_up(log_level or os.environ.get(LOG_LEVEL) or "info")
    except ValueError as error:
        raise SystemExit(f"log level: {error}") from None
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(checked, concurrency, grace_seconds))
    except ConfigurationError as error:
        log.critical("%s", error)
        raise SystemExit(EXIT_CONFIGURATION) from None
    except WorkerError as error:
        log.critical("%s", error)
        raise SystemExit(EXIT_STARTUP) from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(handler: Handler, concurrency: int | None, grace_seconds: float) -> None:
    # Imported here so that `import nvcf_worker` stays light and a wrong handler is told without delay.
    from nvcf_worker.config import WorkerConfig
    from nvcf_worker.worker import Worker

    config = WorkerConfig.from_environment(os.environ, concurrency=concurrency)
    worker = Worker(handler, config, grace_seconds=grace_seconds)
    log.info("serving %s with %d slots", handler.name, config.concurrency)
    if threading.current_thread() is threading.main_thread():
        _listen_for_signals(worker.stop)
    await worker.run()


def _listen_for_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        if len(received) > 1:
            log.critical("second signal; leaving now")
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + number)
        log.info("%s received", number.name)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
