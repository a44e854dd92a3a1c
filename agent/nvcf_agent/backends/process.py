"""Instances as operating system processes of this machine, each in a process group of its own."""

import asyncio
import logging
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nvcf_agent.backends.allowed import Allowed
from nvcf_agent.backends.cgroups import Group, Groups, LimitsUnavailable, describe_end, machine_oom_kills
from nvcf_agent.backends.collector import FILE, run_collector, write_configuration
from nvcf_agent.backends.environment import (
    InstancePlaces,
    InstanceSpec,
    worker_command,
    worker_environment,
)
from nvcf_agent.backends.exit_reason import explained, forget_exit_reason, read_exit_reason
from nvcf_agent.backends.health import readiness
from nvcf_agent.backends.held_requests import held_requests
from nvcf_agent.backends.interface import NO_SECRETS, Running, Secrets
from nvcf_agent.backends.isolation import InstanceUser, Isolation
from nvcf_agent.backends.orphans import kill_orphans
from nvcf_agent.backends.output import RotatingLog, Tail, generation, pump
from nvcf_agent.backends.results import RESULTS, KeptResults, modified
from nvcf_agent.errors import LaunchError, StartError, Unsupported
from nvcf_agent.state.events import Ended, Event, Ready, Unready
from nvcf_agent.state.inventory import Limits
from nvcf_agent.state.machine_inventory import MachineInventory
from nvcf_broker.errors import ProcessError
from nvcf_broker.files import private_directory
from nvcf_broker.process import free_port, signal_group, spawn, stop_process, wait_exit
from nvcf_proto.icms.names import Workload
from nvcf_proto.models import ProcessSource

_log = logging.getLogger(__name__)

# How long to read on after the worker has ended. A process that it started may keep its pipes open.
_DRAIN_SECONDS = 2.0
_LOGS_KEPT = 20


@dataclass
class _Child:
    """One running instance and the tasks that belong to it."""

    running: Running
    process: asyncio.subprocess.Process
    health_port: int
    log: RotatingLog
    limits: Limits
    group: Group | None
    machine_oom_kills: int
    has_collector: bool = False
    is_task: bool = False
    terminating: bool = False
    errors: Tail = field(default_factory=Tail)
    task: asyncio.Task[None] | None = None


class ProcessBackend:
    """Runs instances as processes, with folders in `instances/ID/` and output in `logs/FUNCTION/ID.log`.

    Results of an ended task are in `results/ID/` for some days, within a bound.

    `cgroup` is the control group (version 2) above those of limited instances; None: the agent's own.
    `collector` is the program to run beside instances whose telemetry needs one. `allowed` is the allow list
    of what functions may name. With `isolation` each account's instances have a user of their own.
    `secrets` brings them their secrets.
    """

    name = "process"
    restarts = True

    def __init__(
        self,
        data: Path,
        inventory: MachineInventory | None = None,
        *,
        cgroup: Path | None = None,
        collector: Path | None = None,
        allowed: Allowed | None = None,
        isolation: Isolation | None = None,
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        self._data = data.absolute()
        self._instances = self._data / "instances"
        self._results = KeptResults(self._data / RESULTS)
        self._inventory = inventory or MachineInventory()
        self._cgroup = cgroup
        self._collector = collector
        self._allowed = allowed
        self._isolation = isolation
        self._secrets = secrets
        self._groups: Groups | None = None
        self._children: dict[str, _Child] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def prepare(self, known: Collection[str]) -> None:
        await asyncio.to_thread(private_directory, self._instances)
        # Workers end with their agent, so no known instance runs.
        killed = await asyncio.to_thread(kill_orphans, self._instances)
        if killed:
            _log.warning("killed %d orphaned processes of an earlier agent", len(killed))
        await asyncio.to_thread(self._open_groups)
        for entry in await asyncio.to_thread(lambda: list(self._instances.iterdir())):
            if entry.name not in known:
                await self.forget(entry.name)

    def _open_groups(self) -> None:
        if not any(limits.any for _, limits in self._inventory.types):
            return
        try:
            self._groups = Groups.open(self._data, self._cgroup)
        except LimitsUnavailable as error:
            _log.warning("memory and cpu limits of instance types are not enforced: %s", error)

    async def create(self, spec: InstanceSpec) -> Running:
        known = self._children.get(spec.instance_id)
        if known is not None:
            return known.running
        source = spec.source
        if source is None:
            raise Unsupported("this cluster runs processes; the order is for a container image or Helm chart")
        try:
            child = await self._start(spec, source)
        except BaseException as error:
            await self._secrets.end(spec.instance_id)
            if isinstance(error, OSError):
                raise StartError(f"cannot prepare the instance's folder: {error}") from error
            raise
        self._children[spec.instance_id] = child
        child.task = asyncio.create_task(self._live(child), name=f"instance {spec.instance_id}")
        return child.running

    async def _start(self, spec: InstanceSpec, source: ProcessSource) -> _Child:
        if self._allowed is not None:
            await asyncio.to_thread(self._allowed.check, source)
        virtual_env = await asyncio.to_thread(_check_source, source)
        places = await asyncio.to_thread(self._make_places, spec)
        user = await asyncio.to_thread(self._make_user, spec, places)
        uid = None if user is None else user.uid
        secrets = await self._secrets.begin(spec.instance_of, places.shared.parent, uid)
        places = replace(places, secrets=secrets)
        path = self._log_path(spec)
        group = await asyncio.to_thread(self._make_group, spec)
        log = await asyncio.to_thread(RotatingLog, path)
        inherited = {**os.environ, **(user.variables() if user is not None else {})}
        environment = worker_environment(spec, source, places, inherited, virtual_env)
        try:
            command = worker_command(source, spec.order.workload)
            process = await self._spawn(command, source, environment, places, group, user)
        except ProcessError as error:
            log.close()
            raise LaunchError(str(error)) from error
        except BaseException:
            log.close()
            raise
        running = Running(
            spec.instance_id,
            str(path),
            pid=process.pid,
            health_port=places.health_port,
            metrics=places.metrics,
        )
        kills = await asyncio.to_thread(machine_oom_kills)
        return _Child(
            running,
            process,
            places.health_port,
            log,
            spec.limits,
            group,
            kills,
            has_collector=places.collector is not None,
            is_task=places.results is not None,
        )

    async def _spawn(
        self,
        command: list[str],
        source: ProcessSource,
        environment: Mapping[str, str],
        places: InstancePlaces,
        group: Group | None,
        user: InstanceUser | None,
    ) -> asyncio.subprocess.Process:
        if user is not None and self._isolation is not None:
            prefix = group.command(()) if group is not None else ()
            folder = places.shared.parent
            return await self._isolation.spawn(prefix, command, environment, source, folder, user)
        return await spawn(
            group.command(command) if group is not None else command,
            env=environment,
            cwd=Path(source.working_directory),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    def _make_user(self, spec: InstanceSpec, places: InstancePlaces) -> InstanceUser | None:
        if self._isolation is None:
            return None
        folders = (places.shared, places.assets, places.responses, places.results)
        own = [each for each in folders if each is not None]
        return self._isolation.prepare(spec.order.nca_id, places.shared.parent, own)

    def _make_group(self, spec: InstanceSpec) -> Group | None:
        if self._groups is None or not spec.limits.any:
            return None
        return self._groups.make(spec.instance_id, spec.limits)

    def _make_places(self, spec: InstanceSpec) -> InstancePlaces:
        home = private_directory(self._instances / spec.instance_id)
        forget_exit_reason(home / "shared")
        port = self._ports()
        health_port = port()
        metrics = f"127.0.0.1:{port()}" if spec.telemetry.metrics else None
        collector = self._make_collector(spec, home, port)
        return InstancePlaces(
            shared=private_directory(home / "shared"),
            assets=private_directory(home / "assets"),
            responses=private_directory(home / "responses"),
            health_port=health_port,
            metrics=metrics,
            collector=collector,
            results=self._make_results(spec, home) if spec.order.workload is Workload.TASK else None,
        )

    def _make_results(self, spec: InstanceSpec, home: Path) -> Path:
        """Return the folder of a task's results; it has those of the run that this one continues."""
        details, folder = spec.order.task_details, home / RESULTS
        before = None if details is None else details.continues
        if before is not None and before not in self._children and not folder.exists():
            left = self._instances / before / RESULTS
            self._results.take(before, left, folder)
        return private_directory(folder)

    def _ports(self) -> Callable[[], int]:
        """Return a function that returns a new free port at each call."""
        taken = {child.health_port for child in self._children.values()}
        taken |= {_port(child.running.metrics) for child in self._children.values() if child.running.metrics}

        def port() -> int:
            while (found := free_port()) in taken:
                continue
            taken.add(found)
            return found

        return port

    def _make_collector(self, spec: InstanceSpec, home: Path, port: Callable[[], int]) -> str | None:
        """Write the collector's configuration. Return its OTLP address (gRPC); None without a collector."""
        if spec.telemetry.collector is None:
            return None
        try:
            placement = write_configuration(spec.telemetry.collector, home, port)
        except (OSError, UnicodeDecodeError) as error:
            # Telemetry never prevents a start.
            _log.warning("telemetry of instance %s is left out: %s", spec.instance_id, error)
            return None
        if self._collector is None:
            _log.warning(
                "telemetry of instance %s needs a collector: run one on %s, or give the agent --collector",
                spec.instance_id,
                home / FILE,
            )
        return f"{placement.host}:{placement.grpc_port}"

    def _log_path(self, spec: InstanceSpec) -> Path:
        # Function names have no slashes, but a message of another origin may.
        folder = re.sub(r"[^A-Za-z0-9_.-]", "_", spec.function_name).lstrip(".")[:128] or "function"
        return self._data / "logs" / folder / f"{spec.instance_id}.log"

    async def _live(self, child: _Child) -> None:
        """Accompany a process from its start to the report of its end."""
        code = -signal.SIGKILL.value
        try:
            async with asyncio.TaskGroup() as group:
                outputs = ((child.process.stdout, None), (child.process.stderr, child.errors))
                pumps = [
                    group.create_task(pump(stream, child.log, tail))
                    for stream, tail in outputs
                    if stream is not None
                ]
                watching = group.create_task(self._report_readiness(child))
                beside = group.create_task(self._run_collector(child))
                await wait_exit(child.process)
                watching.cancel()
                # The collector ends after the worker, to send the worker's last telemetry.
                beside.cancel()
                # Processes that the worker left in its group end with it.
                code = await stop_process(child.process, 0)
                # Those in sessions of their own are found by their environment.
                home = self._instances / child.running.instance_id
                await asyncio.to_thread(kill_orphans, home)
                await asyncio.wait(pumps, timeout=_DRAIN_SECONDS)
                for each in pumps:
                    each.cancel()
        finally:
            signal_group(child.process.pid, signal.SIGKILL)
            child.log.close()
            del self._children[child.running.instance_id]
            self._events.put_nowait(self._end_of(child, code))

    async def _run_collector(self, child: _Child) -> None:
        home = self._instances / child.running.instance_id
        if self._collector is not None and child.has_collector:
            await run_collector(self._collector, home)

    def _end_of(self, child: _Child, code: int) -> Ended:
        in_group = child.group.oom_kills() if child.group is not None else 0
        on_machine = machine_oom_kills() - child.machine_oom_kills
        if child.group is not None:
            child.group.remove()
        category, how = describe_end(
            code,
            terminating=child.terminating,
            limit=child.limits.memory,
            group_oom_kills=in_group,
            machine_oom_kills=on_machine,
        )
        shared = self._instances / child.running.instance_id / "shared"
        category, how = explained(category, how, code, read_exit_reason(shared))
        reason = "\n".join([how, *child.errors.lines()])
        exit_code = code if child.is_task else None
        return Ended(child.running.instance_id, reason, category, exit_code=exit_code)

    async def _report_readiness(self, child: _Child) -> None:
        instance_id = child.running.instance_id
        if child.is_task:
            # It serves nothing, so it runs as soon as its process does.
            self._events.put_nowait(Ready(instance_id))
            return
        async for why in readiness(child.health_port):
            event = Ready(instance_id) if why is None else Unready(instance_id, f"not ready any more ({why})")
            self._events.put_nowait(event)

    async def delete(self, instance_id: str, grace: float) -> None:
        child = self._children.get(instance_id)
        if child is None or child.task is None:
            return
        child.terminating = True
        await stop_process(child.process, grace)
        await asyncio.wait({child.task})

    async def held_requests(self, instance_id: str, version_id: str, wall: float) -> tuple[str, ...]:
        shared = self._instances / instance_id / "shared"
        return await asyncio.to_thread(held_requests, shared, instance_id, version_id, wall)

    async def forget(self, instance_id: str) -> None:
        if instance_id not in self._children:
            await self._secrets.end(instance_id)
            await asyncio.to_thread(self._remove_files, instance_id)

    def _remove_files(self, instance_id: str) -> None:
        home = self._instances / instance_id
        if self._results.keep(home / RESULTS, instance_id, time.time()):
            shutil.rmtree(home, ignore_errors=True)
        for log in (self._data / "logs").glob(f"*/{instance_id}.log"):
            others = [path for path in log.parent.glob("*.log") if path.stem not in self._children]
            for old in sorted(others, key=modified, reverse=True)[_LOGS_KEPT:]:
                for number in range(10):
                    generation(old, number).unlink(missing_ok=True)

    async def list(self) -> list[Running]:
        return [child.running for child in self._children.values()]

    async def watch(self) -> AsyncIterator[Event]:
        while True:
            yield await self._events.get()

    async def close(self, grace: float) -> None:
        """End all instances concurrently, since a process cannot outlive its agent."""
        await asyncio.gather(*(self.delete(instance_id, grace) for instance_id in list(self._children)))


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _check_source(source: ProcessSource) -> Path | None:
    """Return the interpreter's virtual environment, if any. Raises `LaunchError`."""
    if not os.access(source.python, os.X_OK):
        raise LaunchError(f"cannot start {source.python}: there is no such program")
    root = Path(source.python).parent.parent
    return root if (root / "pyvenv.cfg").is_file() else None
