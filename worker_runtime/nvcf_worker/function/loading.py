"""Life of handler objects: create, set up, warm up, check, tear down."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nvcf_worker.errors import Fatal, HandlerError, HandlerFailed, InstanceBroken, StartupError
from nvcf_worker.process.loops import from_outside

log = logging.getLogger("nvcf_worker")

RunBlocking = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a blocking function on a thread."""

TEARDOWN_SECONDS = 10.0
HEALTH_INTERVAL = 5.0
HEALTH_TIMEOUT = 60.0
_STEPS = ("setup", "warmup", "teardown", "health")
_NEAR_MISSES = {
    "set_up": "setup",
    "setUp": "setup",
    "warm_up": "warmup",
    "warmUp": "warmup",
    "tear_down": "teardown",
    "tearDown": "teardown",
    "is_healthy": "health",
    "health_check": "health",
    "healthcheck": "health",
}


class Loading:
    """The life of one handler object. `make` creates the object, or returns one that exists.

    `setup`, then `warmup`, run before the first request, `teardown` after the last, and `health` every
    HEALTH_INTERVAL seconds in between. Each may be missing, plain (run on a thread) or a coroutine function.
    """

    def __init__(self, make: Callable[[], Any], name: str) -> None:
        self._make = make
        self._instance: Any = None
        self._made = False
        self._set_up = False
        self.name = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._instance(*arguments, **named)

    async def begin(self, blocking: RunBlocking) -> None:
        """Create the object, set it up and warm it up. Raises StartupError, InstanceBroken."""
        started = time.monotonic()
        try:
            if not self._made:
                self._instance = await blocking(self._make)
                self._made = True
            await self._step("setup", blocking)
            self._set_up = True
            await self._step("warmup", blocking)
        except Fatal as error:
            raise InstanceBroken(f"{self.name}: {error}") from error
        except BaseException as error:
            if from_outside(error):
                raise
            log.exception("%s could not be set up", self.name)
            raise StartupError(f"{self.name} could not be set up: {_raised(error)}") from error
        log.info("%s is set up (%.1f s)", self.name, time.monotonic() - started)

    async def end(self, blocking: RunBlocking) -> None:
        """Tear the object down if it was set up, in at most TEARDOWN_SECONDS; a failure is only logged."""
        if not self._set_up:
            return
        try:
            async with asyncio.timeout(TEARDOWN_SECONDS):
                await self._step("teardown", blocking)
        except TimeoutError:
            log.error("%s: teardown did not end within %.0f s", self.name, TEARDOWN_SECONDS)
        except BaseException as error:
            if from_outside(error):
                raise
            log.exception("%s: teardown failed", self.name)

    @property
    def has_health(self) -> bool:
        """Whether the object has a `health` hook."""
        return callable(getattr(self._instance, "health", None))

    async def check(self, blocking: RunBlocking) -> str | None:
        """Call `health`; return why the object is unhealthy, None when it is healthy.

        False is unhealthy, and so is a text that says why. None and True are healthy.
        """
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                healthy = await self._step("health", blocking)
        except TimeoutError:
            return f"{self.name}: health did not return within {HEALTH_TIMEOUT:.0f} s"
        except BaseException as error:
            if from_outside(error):
                raise
            return f"{self.name}: health raised {_raised(error)}"
        if healthy is None or (healthy and not isinstance(healthy, str)):
            return None
        return f"{self.name}: health returned {healthy!r}"

    async def _step(self, name: str, blocking: RunBlocking) -> Any:
        step = getattr(self._instance, name, None)
        if step is None:
            return None
        result = step() if inspect.iscoroutinefunction(step) else await blocking(step)
        return await result if inspect.isawaitable(result) else result


def _raised(error: BaseException) -> str:
    """Return what a step raised, e.g. SystemExit, which its thread has passed on as HandlerFailed."""
    if isinstance(error, HandlerFailed) and error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".rstrip(": ")


def of_class(kind: type) -> Loading:
    """Return the life of a class' only instance. Raises HandlerError for a class that cannot serve."""
    if not any("__call__" in base.__dict__ for base in kind.__mro__):
        raise HandlerError(f"{kind.__name__} has no method __call__(self, request)")
    try:
        inspect.signature(kind).bind()
    except TypeError as error:
        raise HandlerError(
            f"{kind.__name__} must take no arguments ({error}); give serve() an instance instead"
        ) from error
    except ValueError:  # a class without a signature
        pass
    _warn_of_near_misses(kind)
    return Loading(kind, kind.__name__)


def of_instance(handler: object) -> Loading | None:
    """Return the life of a handler object with hooks; None for functions and objects without hooks."""
    if inspect.isroutine(handler):
        return None
    _warn_of_near_misses(type(handler))
    if not any(callable(getattr(handler, name, None)) for name in _STEPS):
        return None
    return Loading(lambda: handler, type(handler).__name__)


def _warn_of_near_misses(kind: type) -> None:
    for name, hook in _NEAR_MISSES.items():
        if callable(getattr(kind, name, None)) and not hasattr(kind, hook):
            warnings.warn(f"{kind.__name__}.{name} is not called by the worker; name it {hook}", stacklevel=2)


async def until_unhealthy(loading: Sequence[Loading], blocking: RunBlocking) -> str:
    """Call all `health` hooks every HEALTH_INTERVAL seconds; return why the first object is unhealthy."""
    watched = [one for one in loading if one.has_health]
    while watched:
        await asyncio.sleep(HEALTH_INTERVAL)
        for one in watched:
            reason = await one.check(blocking)
            if reason is not None:
                return reason
    never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    return await never


async def begin_all(loading: Sequence[Loading], blocking: RunBlocking) -> None:
    """Set up everything, one after the other. Raises StartupError, InstanceBroken."""
    for one in loading:
        await one.begin(blocking)


async def end_all(loading: Sequence[Loading], blocking: RunBlocking) -> None:
    """Tear down everything in reverse order."""
    for one in reversed(loading):
        await one.end(blocking)
