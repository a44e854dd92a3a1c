"""`nvcf up`, `nvcf down`: the platform on this machine."""

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_agent.backends.isolation import why_not_isolated
from nvcf_agent.errors import AgentError
from nvcf_agent.state.machine_inventory import parse_size
from nvcf_cli.access import Access, DataOption
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.local.platform import UpOptions, run_platform
from nvcf_cli.local.processes import (
    AGENT_GRACE_SECONDS,
    SIMULATED_GPU,
    UNPROTECTED,
    ClusterPlan,
    Durability,
    checked_quotas,
    isolation_flags,
)
from nvcf_cli.local.state import (
    Installation,
    PlatformState,
    default_data_folder,
    only_platform,
    read_state,
    running_pid,
)
from nvcf_cli.screen import console

# It gives up itself when a process makes no progress.
_START_SECONDS = 1800.0
_STOP_SECONDS = 60.0
_SAY_SECONDS = 2.0
_EXIT_SECONDS = 5.0
_POLL_SECONDS = 0.05


def up(
    data: DataOption = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port for callers; 0: any. [default: 8080, else any]", show_default=False
        ),
    ] = None,
    nats: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Use this broker instead of an own one.", show_default=False),
    ] = None,
    nats_credentials: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For --nats: line user:password.", show_default=False),
    ] = None,
    nats_control_credentials: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For --nats: line user:password of the account of the control plane.",
            show_default=False,
        ),
    ] = None,
    callout_seed: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For --nats: seed of the callout issuer.", show_default=False),
    ] = None,
    clusters: Annotated[
        int, typer.Option(min=1, max=16, help="Clusters to divide this machine into, each with an agent.")
    ] = 1,
    gpus: Annotated[int, typer.Option(min=0, max=1024, help="Simulated GPUs of each cluster.")] = 0,
    gpu_name: Annotated[str, typer.Option(metavar="NAME", help="Name of these GPUs.")] = SIMULATED_GPU,
    cpu_slots: Annotated[
        int | None,
        typer.Option(min=0, help="Instances without GPU in each. [default: 256]", show_default=False),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory of each instance, e.g. 512M.", show_default=False),
    ] = None,
    cpus: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="NUMBER", help="CPUs of each instance.", show_default=False),
    ] = None,
    collector: Annotated[
        Path | None,
        typer.Option(
            metavar="PROGRAM",
            help="An OpenTelemetry Collector, run beside instances whose telemetry needs one.",
            show_default=False,
        ),
    ] = None,
    sessions: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Listen for gRPC and WebSocket here.", show_default=False),
    ] = None,
    durability: Annotated[
        Durability, typer.Option(help="What is on disk before a caller is told that it is kept.")
    ] = Durability.PROMISES,
    data_max: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Disk that data may take, e.g. 20G; kept for later starts. [default: half of the disk]",
            show_default=False,
        ),
    ] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ACCOUNT:]QUOTA=N",
            help="A limit of each account, or of one; repeatable. nvcf quotas names them.",
            show_default=False,
        ),
    ] = None,
    allow_folder: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Functions may be here; repeatable. [default: home, this folder, /tmp]"
        ),
    ] = None,
    allow_python: Annotated[
        list[Path] | None,
        typer.Option(metavar="PROGRAM", help="A Python that functions may use; repeatable."),
    ] = None,
    instance_uid_range: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST-LAST",
            help="As root: numbers of the users of instances; none: root itself.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        bool, typer.Option(help="Serve metrics for Prometheus; nvcf metrics shows where.")
    ] = True,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it is ready; nvcf down ends it.")
    ] = False,
    log_level: Annotated[str, typer.Option(help="Least level: debug, info, warning or error.")] = "info",
) -> None:
    """Run the platform on this machine: broker, gateway, agents and autoscaler.

    Ctrl-C ends everything in order, a second one at once. Children that crash are started again.

    \b
    Examples:
      nvcf up
      nvcf up --http-port 9000 --data ./platform
      nvcf up --detach
      nvcf up --data-max 20G
      nvcf up --quota queued-requests=1000
      nvcf up --clusters 2 --gpus 4
      nvcf up --sessions 127.0.0.1:8090
      nvcf up --nats nats://broker:4222 --nats-credentials platform.credentials \\
          --nats-control-credentials control.credentials --callout-seed callout.seed
    """
    if log_level.lower() not in ("debug", "info", "warning", "error"):
        raise UsageError(f"--log-level {log_level}: debug, info, warning or error expected")
    if nats is None and (nats_credentials or nats_control_credentials or callout_seed):
        raise UsageError("credentials and --callout-seed belong to a broker given by --nats")
    if nats_credentials and not nats_control_credentials:
        raise UsageError(
            "--nats-credentials needs --nats-control-credentials, too: agents get their messages from that "
            "account (docs/operate/deployment.md)"
        )
    if nats is not None and data_max:
        raise UsageError("--data-max belongs to the platform's own broker, not to one given by --nats")
    program = collector.expanduser().absolute() if collector else None
    isolation = isolation_flags(allow_folder or (), allow_python or (), instance_uid_range)
    plan = ClusterPlan(clusters, gpus, gpu_name, cpu_slots, memory, cpus, program, isolation)
    plan.check()
    quotas = checked_quotas(quota or ())
    installation = Access(data=data).installation
    if detach:
        _detach(installation)
        return
    options = UpOptions(
        data=installation.data,
        http_port=http_port,
        nats=nats,
        nats_credentials=nats_credentials.absolute() if nats_credentials else None,
        control_credentials=nats_control_credentials.absolute() if nats_control_credentials else None,
        callout_seed=callout_seed.absolute() if callout_seed else None,
        clusters=plan,
        metrics=metrics,
        log_level=log_level.lower(),
        sessions=sessions,
        data_max=_size(data_max),
        durability=durability,
        quotas=quotas,
    )
    out = console()

    def say(text: str) -> None:
        out.print(Text(text))

    with only_platform(installation):
        say("starting broker, gateway, agents and autoscaler")
        if instance_uid_range == "none" or why_not_isolated() is not None:
            say(UNPROTECTED)
        asyncio.run(run_platform(options, on_ready=lambda state: say(greeting(state)), say=say))
        say("everything is stopped")


def _size(text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except AgentError:
        raise UsageError(f"--data-max {text}: a size like 512M or 20G expected") from None


def greeting(state: PlatformState) -> str:
    """Return what a user needs once the platform is up; it names the key's file, never the key."""
    key = shlex.quote(state.key_file)
    data = _data_option(state)
    platform = data.replace("--data", "--platform", 1)
    sessions = f"  sessions   {state.sessions}\n" if state.sessions is not None else ""
    return f"""nvcf is up

  gateway    {state.url}
{sessions}  broker     {state.nats}{f", {state.broker}" if state.broker else ""}
  admin key  {state.key_file}
  data       {state.data}

Try it in another terminal:

  nvcf deploy function.py{data}
  nvcf invoke function --data hello{platform}
  curl -H "Authorization: Bearer $(cat {key})" {state.url}/v2/nvcf/functions

The HTTP API: {state.url}/openapi.json

Ctrl-C ends everything."""


def _data_option(state: PlatformState) -> str:
    """Return ` --data DIR` for a data folder that commands would not find by themselves."""
    own = Path(state.data) != default_data_folder()
    return f" --data {shlex.quote(str(state.data))}" if own else ""


def _detach(installation: Installation) -> None:
    """Start `nvcf up` with the same arguments in a session of its own and wait until it is ready."""
    pid = running_pid(installation)
    if pid is not None:
        raise CliError(f"nvcf is already up on {installation.data} (process {pid})")
    arguments = [each for each in sys.argv[1:] if each not in ("--detach", "-d")]
    environment = {**os.environ, "NVCF_HOME": str(installation.data)}
    installation.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = installation.log("up")
    with path.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "nvcf_cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment,
        )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        state = read_state(installation)
        if state is not None and state.pid == child.pid:
            # What it said about the disk, the broker and who instances run as.
            said = path.read_text(errors="replace").partition("nvcf is up")[0]
            end = f"nvcf down{_data_option(state)} ends everything."
            console().print(Text(said + greeting(state).replace("Ctrl-C ends everything.", end)))
            return
        if child.poll() is not None:
            lines = path.read_text(errors="replace").strip().splitlines()
            raise CliError(lines[-1].removeprefix("error: ") if lines else "nvcf up ended at once")
        time.sleep(_POLL_SECONDS)
    child.terminate()
    raise CliError(f"the platform was not ready within {_START_SECONDS:g} s: see {path}")


def down(
    data: DataOption = None,
    kill: Annotated[bool, typer.Option("--kill", help="Do not wait for running requests.")] = False,
) -> None:
    """End the platform that runs on this machine.

    Running requests have 20 s to finish. What takes longer is cut; kept calls run again at the next start.

    \b
    Examples:
      nvcf down
      nvcf down --kill
    """
    installation = Access(data=data).installation
    pid = running_pid(installation)
    if pid is None:
        console().print(Text(f"no platform runs on {installation.data}"))
        return
    signals = [signal.SIGTERM, signal.SIGTERM] if kill else [signal.SIGTERM]
    try:
        for number in signals:
            os.kill(pid, number)
            time.sleep(_POLL_SECONDS)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise CliError(f"process {pid} belongs to another user, who has to end it") from error
    said = kill
    began = time.monotonic()
    while running_pid(installation) == pid:
        if not said and time.monotonic() - began > _SAY_SECONDS:
            said = True
            console(stderr=True).print(
                Text(
                    f"waiting for running requests, {AGENT_GRACE_SECONDS:g} s at most: what takes longer is "
                    "cut, and kept calls run again at the next start (nvcf down --kill does not wait)"
                )
            )
        if time.monotonic() - began > _STOP_SECONDS:
            raise CliError(f"process {pid} is still ending after {_STOP_SECONDS:g} s: try nvcf down --kill")
        time.sleep(_POLL_SECONDS)
    _wait_gone(pid)
    console().print(Text("everything is stopped"))


def _wait_gone(pid: int) -> None:
    """Let a process that has given up its lock end. One that nobody reaps is not waited for any longer."""
    deadline = time.monotonic() + _EXIT_SECONDS
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(_POLL_SECONDS)
