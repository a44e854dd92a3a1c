"""Instances as operating system processes of this machine, each in a process group of its own."""

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from nvcf_agent.backends.interface import Capacity, Ended, Event, Ready, Running
from nvcf_agent.environment import InstancePlaces, InstanceSpec, worker_environment
from nvcf_agent.errors import NoCapacity, StartError
from nvcf_agent.health import wait_ready
from nvcf_agent.leftovers import kill_leftovers
from nvcf_agent.output import RotatingLog, Tail, generation, pump
from nvcf_broker.errors import ProcessError
from nvcf_broker.files import private_directory
from nvcf_broker.process import describe_exit, free_port, signal_group, spawn, stop_process

_log = logging.getLogger(__name__)

DEFAULT_CAPACITY = 256
# A process that a worker started may keep its pipes open; the worker's own output has arrived by then.
_DRAIN_SECONDS = 2.0
_LOGS_KEPT = 20


@dataclass
class _Child:
    """One running instance and the tasks that belong to it."""

    running: Running
    process: asyncio.subprocess.Process
    health_port: int
    log: RotatingLog
    errors: Tail = field(default_factory=Tail)
    task: asyncio.Task[None] | None = None


class ProcessBackend:
    """Runs instances below `data`: folders in `instances/ID/`, output in `logs/FUNCTION/ID.log`."""

    def __init__(self, data: Path, *, capacity: int = DEFAULT_CAPACITY) -> None:
        self._data = data.absolute()
        self._instances = self._data / "instances"
        self._capacity = capacity
        self._children: dict[str, _Child] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def prepare(self) -> None:
        """End what a killed predecessor left and make the folders. Call it once before anything else."""
        await asyncio.to_thread(private_directory, self._instances)
        killed = await asyncio.to_thread(kill_leftovers, self._instances)
        if killed:
            _log.warning("ended %d processes that an earlier agent left behind", len(killed))

    async def create(self, spec: InstanceSpec) -> Running:
        known = self._children.get(spec.instance_id)
        if known is not None:
            return known.running
        if len(self._children) >= self._capacity:
            raise NoCapacity(f"this cluster runs {self._capacity} instances already, its limit")
        try:
            child = await self._start(spec)
        except OSError as error:
            raise StartError(f"cannot prepare the instance's folder: {error}") from error
        self._children[spec.instance_id] = child
        child.task = asyncio.create_task(self._live(child), name=f"instance {spec.instance_id}")
        return child.running

    async def _start(self, spec: InstanceSpec) -> _Child:
        places = await asyncio.to_thread(self._make_places, spec.instance_id)
        path = self._log_path(spec)
        log = await asyncio.to_thread(RotatingLog, path)
        virtual_env = await asyncio.to_thread(_virtual_env, spec.source.python)
        try:
            process = await spawn(
                spec.command(),
                env=worker_environment(spec, places, os.environ, virtual_env),
                cwd=Path(spec.source.working_directory),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except ProcessError as error:
            log.close()
            raise StartError(str(error)) from error
        running = Running(spec.instance_id, str(path), pid=process.pid, health_port=places.health_port)
        return _Child(running, process, places.health_port, log)

    def _make_places(self, instance_id: str) -> InstancePlaces:
        home = private_directory(self._instances / instance_id)
        taken = {child.health_port for child in self._children.values()}
        port = free_port()
        while port in taken:
            port = free_port()
        return InstancePlaces(
            shared=private_directory(home / "shared"),
            assets=private_directory(home / "assets"),
            responses=private_directory(home / "responses"),
            health_port=port,
        )

    def _log_path(self, spec: InstanceSpec) -> Path:
        # Function names follow a pattern without slashes; a record of another origin may not.
        folder = re.sub(r"[^A-Za-z0-9_.-]", "_", spec.version.name).lstrip(".") or "function"
        return self._data / "logs" / folder / f"{spec.instance_id}.log"

    async def _live(self, child: _Child) -> None:
        """Everything from the start of a process to the report of its end."""
        instance_id = child.running.instance_id
        code = -signal.SIGKILL.value
        try:
            async with asyncio.TaskGroup() as group:
                outputs = ((child.process.stdout, None), (child.process.stderr, child.errors))
                pumps = [
                    group.create_task(pump(stream, child.log, tail))
                    for stream, tail in outputs
                    if stream is not None
                ]
                waiting = group.create_task(self._report_ready(child))
                await child.process.wait()
                waiting.cancel()
                # Whatever it started and left in its group ends with it.
                code = await stop_process(child.process, 0)
                await asyncio.wait(pumps, timeout=_DRAIN_SECONDS)
                for each in pumps:
                    each.cancel()
        finally:
            signal_group(child.process.pid, signal.SIGKILL)
            child.log.close()
            del self._children[instance_id]
            reason = "\n".join([describe_exit(code), *child.errors.lines()])
            self._events.put_nowait(Ended(instance_id, reason))

    async def _report_ready(self, child: _Child) -> None:
        await wait_ready(child.health_port)
        self._events.put_nowait(Ready(child.running.instance_id))

    async def delete(self, instance_id: str, grace: float) -> None:
        child = self._children.get(instance_id)
        if child is None or child.task is None:
            return
        await stop_process(child.process, grace)
        await asyncio.wait({child.task})

    async def forget(self, instance_id: str) -> None:
        if instance_id not in self._children:
            await asyncio.to_thread(self._remove_files, instance_id)

    def _remove_files(self, instance_id: str) -> None:
        shutil.rmtree(self._instances / instance_id, ignore_errors=True)
        for log in (self._data / "logs").glob(f"*/{instance_id}.log"):
            others = [path for path in log.parent.glob("*.log") if path.stem not in self._children]
            for old in sorted(others, key=_modified, reverse=True)[_LOGS_KEPT:]:
                for number in range(10):
                    generation(old, number).unlink(missing_ok=True)

    async def forget_unknown(self, known: set[str]) -> None:
        """Remove the folders of instances that nobody knows any more."""
        for entry in await asyncio.to_thread(lambda: list(self._instances.iterdir())):
            if entry.name not in known:
                await self.forget(entry.name)

    async def list(self) -> list[Running]:
        return [child.running for child in self._children.values()]

    async def watch(self) -> AsyncIterator[Event]:
        while True:
            yield await self._events.get()

    async def capacity(self) -> Capacity:
        return Capacity(self._capacity, len(self._children))

    async def close(self, grace: float) -> None:
        """End all instances at the same time."""
        await asyncio.gather(*(self.delete(instance_id, grace) for instance_id in list(self._children)))


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _virtual_env(python: str) -> Path | None:
    """The virtual environment that an interpreter belongs to, if any."""
    root = Path(python).parent.parent
    return root if (root / "pyvenv.cfg").is_file() else None
