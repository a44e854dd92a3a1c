"""The event loop of a worker's processes: run to an end that nothing can hold up, whatever handlers raise."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from nvcf_worker.errors import HandlerFailed

log = logging.getLogger("nvcf_worker")

T = TypeVar("T")

END_SECONDS = 2.0
"""How long tasks that are left over may take to end when they are cancelled."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory of event loops where uvloop is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def run_to_end(main: Coroutine[Any, Any, T], *, plain: bool = False) -> T:
    """Run the process' main coroutine, and end the tasks that it leaves behind.

    Unlike `asyncio.run` this never waits for threads, so a job that hangs cannot keep the process. A task
    that raises SystemExit or KeyboardInterrupt has failed, and does not end the others.

    plain: use asyncio's own loop, which leaves signals to others.
    """
    runner = asyncio.Runner(loop_factory=None if plain else loop_factory())
    loop = runner.get_loop()
    asyncio.set_event_loop(loop)
    task = loop.create_task(main)
    try:
        while True:
            try:
                return loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as error:
                if task.done() or _interrupts(error):
                    raise
                log.error("a task raised %s; the process goes on", type(error).__name__, exc_info=error)
    finally:
        loop.run_until_complete(_end_tasks())
        loop.close()
        asyncio.set_event_loop(None)


def _interrupts(error: BaseException) -> bool:
    """Return whether this is Ctrl-C, which raises KeyboardInterrupt while nobody handles SIGINT."""
    unhandled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, KeyboardInterrupt) and unhandled


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=END_SECONDS)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            await asyncio.get_running_loop().shutdown_asyncgens()


def from_outside(error: BaseException) -> bool:
    """Return whether the running task was cancelled or closed, rather than its code having raised this."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # closed without a running loop
        return True
    if isinstance(error, asyncio.CancelledError):
        return task is not None and task.cancelling() > 0
    return isinstance(error, GeneratorExit) and task is None


def contained(error: BaseException) -> Exception:
    """Return what a handler raised as an error that ends no more than its request."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    failed = HandlerFailed(f"the handler raised {type(error).__name__}: {error}".rstrip(": "))
    failed.__cause__ = error
    return failed
