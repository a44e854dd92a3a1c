"""Detects that something keeps the event loop, or the whole interpreter, from running.

Meanwhile no in-progress signal is sent, and after the consumer's ack wait the queue delivers the
requests again. A loop that does not come back ends the process. `LagWatch` decides; a thread and a timer of
the loop call it.

A request whose time limit is over cannot be cancelled by a loop that stands still. A signal to the loop's
thread interrupts what it does, `time.sleep` for example, and its handler cancels the request there.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import math
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import NamedTuple, Protocol

from nvcf_worker.errors import ConfigurationError
from nvcf_worker.function.cancellation import CancelScope
from nvcf_worker.message import Work
from nvcf_worker.process import logs

log = logging.getLogger("nvcf_worker")

BEAT_SECONDS = 0.5
LOOK_SECONDS = 0.5
THRESHOLD = 2.0
NAMED = 5
_FRAMES = 6
_ALL_FRAMES = 40

STALL_SECONDS = "NVCF_STALL_SECONDS"
"""[ext] Seconds for which the event loop may stand still before the worker ends; 0 for ever. Default: 30."""
DEFAULT_STALL_SECONDS = 30.0
LOCK_FACTOR = 10
"""So many times longer native code may keep the interpreter lock: it may load or compile a model."""

_ARM_SECONDS = 2.0
INTERRUPT = signal.SIGRTMIN + 5 if hasattr(signal, "SIGRTMIN") else 0
"""Sent by this process to its own main thread only; 0 on macOS and Windows, which have no such signal."""
_INTERRUPT_SECONDS = 1.0
"""How long the loop has to stand still before a request whose time limit is over is interrupted."""


def stall_seconds(environ: Mapping[str, str]) -> float:
    """Return the setting; infinite for 0. Raises ConfigurationError."""
    text = environ.get(STALL_SECONDS, "").strip()
    try:
        seconds = float(text) if text else DEFAULT_STALL_SECONDS
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ConfigurationError(f"{STALL_SECONDS} is {text[:32]!r}; it must be a number of seconds")
    return seconds or math.inf


class Running(Protocol):
    """A request in flight."""

    @property
    def work(self) -> Work:
        """Return the request."""

    @property
    def scope(self) -> CancelScope:
        """Return its cancel scope."""


class Silence(NamedTuple):
    """How long the loop did not run, in seconds. `interpreter`: nor did the watching thread, which only the
    interpreter lock can do. `warned`: whether it was logged already."""

    seconds: float
    interpreter: bool
    warned: bool


class LagWatch:
    """When to warn: once and at each doubling. `beat` and `look` take the time in seconds."""

    def __init__(self, threshold: float, now: float) -> None:
        self._threshold = threshold
        self._beat = now
        self._looked = now
        self._next = threshold
        self.stood = 0.0
        """Seconds that the watching thread has seen the loop stand still, while it ran itself."""

    def beat(self, now: float) -> Silence | None:
        """The loop runs; the silence that is over now, if it was too long."""
        lag, self._beat = now - self._beat, now
        warned = self._next > self._threshold
        self._next = self._threshold
        self.stood = 0.0
        if lag < self._threshold:
            return None
        # The loop may be the first to run again, before the watching thread could say anything.
        return Silence(lag, now - self._looked >= self._threshold, warned)

    def look(self, now: float) -> Silence | None:
        """From the watching thread: a silence that lasts, if it is time to log it."""
        slept, self._looked = now - self._looked, now
        lag = now - self._beat
        # If this thread did not run either, that proves nothing: the process was stopped, for example.
        if slept < self._threshold:
            self.stood = min(lag, self.stood + slept)
        if lag < self._next:
            return None
        while self._next <= lag:
            self._next *= 2
        return Silence(lag, slept >= self._threshold, warned=False)


class LoopWatch:
    """Watches the loop that it was made in. `requests`: those in flight; `handler`: its name for the log.

    limit: seconds after which a loop that stands still is given up, once it serves. stuck: called
    then on the watching thread, with the reason. lock_limit: seconds for which the interpreter lock may be
    held while serving; then the interpreter prints all stacks and exits with code 1.
    """

    def __init__(
        self,
        handler: str,
        requests: Callable[[], Iterable[Running]],
        *,
        threshold: float = THRESHOLD,
        limit: float = math.inf,
        lock_limit: float = math.inf,
        stuck: Callable[[str], None] = log.critical,
    ) -> None:
        self._serving = False
        self._limit = limit
        self._lock_limit = lock_limit
        self._armed_at = -math.inf
        self._stuck = stuck
        self._handler = handler
        self._requests = requests
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._watch = LagWatch(threshold, time.monotonic())
        self._stopped = threading.Event()

    async def run(self) -> None:
        """Watch until cancelled."""
        # Only the main thread runs signal handlers.
        interrupts = INTERRUPT > 0 and threading.current_thread() is threading.main_thread()
        before = signal.signal(INTERRUPT, self._on_interrupt) if interrupts else None
        threading.Thread(target=self._look, args=[interrupts], name="nvcf-watch", daemon=True).start()
        try:
            while True:
                over = self._watch.beat(time.monotonic())
                if over is not None and over.warned:
                    log.warning("the event loop runs again after %.1f s", over.seconds)
                elif over is not None:
                    self._warn(over, blocked=False)
                await asyncio.sleep(BEAT_SECONDS)
        finally:
            self._stopped.set()
            if interrupts:
                signal.signal(INTERRUPT, before)
            if self._lock_limit < math.inf:
                faulthandler.cancel_dump_traceback_later()

    def serve(self) -> None:
        """Give the loop up from now on when it stands still: set-up, which may block, is over."""
        self._serving = True
        self._arm(time.monotonic())

    def _look(self, interrupts: bool) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            found = self._watch.look(time.monotonic())
            if found is not None:
                self._warn(found, blocked=True)
            if not self._serving:
                continue
            if interrupts and self._watch.stood >= _INTERRUPT_SECONDS and self._overdue():
                signal.pthread_kill(self._loop_thread, INTERRUPT)
            if self._watch.stood >= self._limit:
                self._give_up()
                return
            self._arm(time.monotonic())

    def _overdue(self) -> list[Running]:
        """Return the requests whose time limit is over, and that nobody has stopped for that."""
        now = time.monotonic()
        return [one for one in self._requests() if one.scope.deadline < now]

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        """Expire the request whose code runs here. Raises CancelledError in it."""
        request_id = logs.request_id.get()
        for one in self._overdue():
            if one.work.request_id == request_id and one.scope.expire is not None:
                one.scope.expire()

    def _arm(self, now: float) -> None:
        """Put off the end of an interpreter in which not even this thread can run."""
        if self._lock_limit < math.inf and now - self._armed_at >= _ARM_SECONDS:
            self._armed_at = now
            # By a thread that needs no interpreter lock.
            faulthandler.dump_traceback_later(self._lock_limit, exit=True)

    def _give_up(self) -> None:
        requests = tuple(self._requests())
        running = self._running(requests)
        names = "" if running is None else f" in request {running.work.request_id}"
        reason = f"the event loop stood still for {self._watch.stood:.0f} s{names}"
        log.critical("%s; this process ends.%s", reason, self._where(_ALL_FRAMES))
        self._stuck(reason)

    def _warn(self, silence: Silence, *, blocked: bool) -> None:
        """`blocked`: the loop is still stuck, so that what it is busy with can be named."""
        lag, interpreter, _ = silence
        requests = tuple(self._requests())
        blocked = blocked and not interpreter
        running = self._running(requests) if blocked else None
        suspects = [running] if running is not None else list(requests)
        names = ", ".join(delivery.work.request_id for delivery in suspects[:NAMED])
        more = f" and {len(suspects) - NAMED} more" if len(suspects) > NAMED else ""
        what = "held the interpreter lock" if interpreter else "blocked the event loop"
        log.warning(
            "%s %s for %.1f s; in flight: %s%s. Meanwhile no request is kept alive. Blocking calls belong "
            'into plain functions; native code that keeps the lock needs serve(..., isolation="process").%s',
            self._handler, what, lag, names or "nothing", more, self._where() if blocked else "",
            extra={"request_id": suspects[0].work.request_id} if len(suspects) == 1 else None,
        )  # fmt: skip

    def _running(self, requests: Iterable[Running]) -> Running | None:
        """The request whose task is what the loop is busy with."""
        task = asyncio.current_task(self._loop)
        return next((one for one in requests if one.scope.task is not None and one.scope.task is task), None)

    def _where(self, frames: int = _FRAMES) -> str:
        frame: FrameType | None = sys._current_frames().get(self._loop_thread)
        if frame is None:
            return ""
        return "\n" + "".join(traceback.format_stack(frame)[-frames:]).rstrip()
