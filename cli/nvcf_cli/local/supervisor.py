"""A tree of long-lived children: started in order, restarted after a crash, ended in reverse order."""

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from nvcf_agent.backends.output import RotatingLog, Tail, pump
from nvcf_broker.errors import BrokerError
from nvcf_broker.process import RestartPolicy, describe_exit, signal_group, spawn, stop_process
from nvcf_cli.errors import CliError
from nvcf_cli.local import progress
from nvcf_cli.local.state import ChildState

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
RESTARTS = RestartPolicy(initial=0.5, factor=2.0, maximum=15.0, stable_after=30.0)
_DRAIN_SECONDS = 1.0

Ready = Callable[[dict[str, Any]], Awaitable[None]]


def _ignore(_output: bytes) -> None:
    """Take output that nobody reads."""


async def always_ready(_line: dict[str, Any]) -> None:
    """Return at once: for children whose ready line on standard output is enough."""


@dataclass(frozen=True)
class ChildSpec:
    """A child of the tree.

    `ready_line`: it prints a JSON object with `"event": "ready"` on standard output once it is ready;
    `wait_ready` is awaited after that (with the object), or at once if there is no such line; it may raise
    `BrokerError`, which ends the child. Output goes to `log`.
    `grace` is the time in seconds between SIGTERM and SIGKILL. `on_errors` gets its standard error.
    """

    name: str
    command: list[str]
    log: Path
    ready_line: bool = True
    wait_ready: Ready = always_ready
    grace: float = 10.0
    death_signal: int = signal.SIGKILL
    on_errors: Callable[[bytes], None] = _ignore


@dataclass(frozen=True)
class Change:
    """A child's state changed; `text` is a message to the user, if the change needs one."""

    name: str
    state: ChildState
    text: str | None = None


@dataclass
class Child:
    """One child and everything around its process. `on_change` gets each change of its state."""

    spec: ChildSpec
    on_change: Callable[[Change], None]
    restarts: RestartPolicy = RESTARTS
    monotonic: Callable[[], float] = time.monotonic
    _process: asyncio.subprocess.Process | None = None
    _task: asyncio.Task[None] | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _state: ChildState = field(default_factory=ChildState)
    _was_ready: asyncio.Event = field(default_factory=asyncio.Event)
    _runs: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Return when it is ready for the first time.

        Raises `CliError` if it ends before, or makes no progress for `PATIENCE_SECONDS`.
        """
        self._task = asyncio.create_task(self._keep_running(), name=f"child {self.spec.name}")
        ready = asyncio.create_task(self._was_ready.wait())
        start = progress.Progress(self.monotonic())
        try:
            done: set[asyncio.Task[Any]] = set()
            while not done:
                done, _ = await asyncio.wait(
                    {self._task, ready}, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if not done and self._hangs(start):
                    raise CliError(
                        f"the {self.spec.name} does not become ready, and has done nothing for "
                        f"{progress.PATIENCE_SECONDS:g} s: {self._where()}"
                    )
        finally:
            ready.cancel()
        if self._task in done:
            await self._task

    def _hangs(self, start: progress.Progress) -> bool:
        cpu = progress.cpu_seconds(self._process.pid) if self._process is not None else 0.0
        return start.stopped(self.monotonic(), cpu, progress.log_size(self.spec.log))

    async def stop(self) -> None:
        """Send SIGTERM, wait for the grace time, then kill; the child is not started again."""
        self._stopping.set()
        if self._process is not None:
            await stop_process(self._process, self.spec.grace)
        if self._task is not None:
            with contextlib.suppress(CliError):
                await self._task

    async def restart(self) -> None:
        """End the process in order, and return when another one runs."""
        self._runs.clear()
        if self._process is not None:
            await stop_process(self._process, self.spec.grace)
        await self._runs.wait()

    def kill(self) -> None:
        """Kill the child and its process group at once."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            signal_group(self._process.pid, signal.SIGKILL)

    def _where(self) -> str:
        return f"see {self.spec.log}"

    def _set_state(self, text: str | None = None, **changes: Any) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)
        self.on_change(Change(self.spec.name, self._state, text))

    async def _keep_running(self) -> None:
        failures, tail = 0, _Output(self.spec.on_errors)
        while not self._stopping.is_set():
            began = self.monotonic()
            try:
                code = await self._run_once(tail)
                how = describe_exit(code)
            except BrokerError as error:
                how = str(error)
            if self._stopping.is_set():
                return
            if not self._was_ready.is_set():
                raise CliError(f"the {self.spec.name} does not start ({how}): {_last_line(tail)}")
            failures = self.restarts.failures_after(failures, self.monotonic() - began)
            delay = self.restarts.delay(failures)
            when = f"in {delay:g} s" if delay else "now"
            self._set_state(
                f"the {self.spec.name} ended ({how}), starting it again {when}: {self._where()}",
                pid=None,
                state="waiting",
                restarts=self._state.restarts + 1,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()

    async def _run_once(self, tail: Tail) -> int:
        """Run the child from its start to its end; return the exit code."""
        log = await asyncio.to_thread(RotatingLog, self.spec.log)
        try:
            self._process = process = await spawn(
                self.spec.command,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                death_signal=self.spec.death_signal,
            )
            self._set_state(pid=process.pid, state="starting")
            if self._stopping.is_set():
                return await stop_process(process, 0)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._follow_ready(process, log)),
                    group.create_task(_pump(process.stderr, log, tail)),
                ]
                await process.wait()
                code = await stop_process(process, 0)
                await asyncio.wait(tasks, timeout=_DRAIN_SECONDS)
                for task in tasks:
                    task.cancel()
            return code
        finally:
            log.close()

    async def _follow_ready(self, process: asyncio.subprocess.Process, log: RotatingLog) -> None:
        if process.stdout is None:
            return
        line: dict[str, Any] = {}
        while self.spec.ready_line and line.get("event") != "ready":
            raw = await process.stdout.readline()
            if not raw:
                return
            line = _json_object(raw)
        try:
            await self.spec.wait_ready(line)
        except BrokerError as error:
            _log.warning("%s: %s", self.spec.name, error)
            signal_group(process.pid, signal.SIGKILL)
            return
        if process.returncode is None:
            self._was_ready.set()
            self._runs.set()
            self._set_state(state="running")
        await _pump(process.stdout, log, None)


class _Output(Tail):
    """The last lines of a child's standard error; all of it goes to `listener` as well."""

    def __init__(self, listener: Callable[[bytes], None]) -> None:
        super().__init__(lines=5)
        self._listener = listener

    def feed(self, data: bytes) -> None:
        """Add bytes."""
        super().feed(data)
        self._listener(data)


async def _pump(stream: asyncio.StreamReader | None, log: RotatingLog, tail: Tail | None) -> None:
    if stream is not None:
        await pump(stream, log, tail)


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _last_line(tail: Tail) -> str:
    lines = tail.lines()
    if not lines:
        return "it said nothing"
    # The platform's own processes log JSON lines; the message is what matters here.
    return str(_json_object(lines[-1].encode()).get("message") or lines[-1])


@dataclass
class Tree:
    """Groups of children; each needs those before it, and ends before them."""

    groups: list[list[Child]] = field(default_factory=list)

    async def add(self, *children: Child, outlives_last: bool = False) -> None:
        """Start a group, all of it at the same time. Raises `CliError`.

        `outlives_last`: the group added before it ends first all the same.
        """
        place = len(self.groups) - 1 if outlives_last else len(self.groups)
        self.groups.insert(place, list(children))
        results = await asyncio.gather(*(child.start() for child in children), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def stop(self) -> None:
        """End all, the last group first, the children of a group at the same time."""
        for group in reversed(self.groups):
            await asyncio.gather(*(child.stop() for child in group))

    def kill(self) -> None:
        """End all at once, without order."""
        for group in reversed(self.groups):
            for child in group:
                child.kill()
