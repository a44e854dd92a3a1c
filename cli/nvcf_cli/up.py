"""`nvcf up`: broker, gateway and process agent as one supervised tree."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nvcf_broker.errors import BrokerError
from nvcf_broker.process import free_port, port_is_free
from nvcf_broker.server import LocalBroker
from nvcf_cli.errors import CliError
from nvcf_cli.keys import ensure_keys
from nvcf_cli.state import Installation, PlatformState, write_state
from nvcf_cli.supervisor import Change, Child, ChildSpec, Tree

DEFAULT_HTTP_PORT = 8080
AGENT_GRACE_SECONDS = 20.0
# The agent first lets its workers finish, so it needs longer than they do.
_AGENT_EXTRA_SECONDS = 5.0
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class UpOptions:
    """What the user chose. Without `nats` the platform runs a broker of its own."""

    data: Path
    http_port: int | None = None
    nats: str | None = None
    nats_credentials: Path | None = None
    callout_seed: Path | None = None
    log_level: str = "info"


@dataclass(frozen=True)
class Addresses:
    """Where the parts of the platform listen; chosen once, so that restarted children keep them."""

    http: str
    grpc: str
    nats: str
    nats_credentials: Path | None
    callout_seed: Path | None


def choose_http_port(wanted: int | None) -> int:
    """The wanted port, else 8080 if it is free, else any. Raises `CliError` if the wanted one is taken."""
    if wanted is None:
        return DEFAULT_HTTP_PORT if port_is_free(DEFAULT_HTTP_PORT) else free_port()
    if wanted == 0:
        return free_port()
    if not port_is_free(wanted):
        raise CliError(f"port {wanted} is taken: choose another one with --http-port (0 takes any)")
    return wanted


def gateway_spec(installation: Installation, addresses: Addresses, log_level: str) -> ChildSpec:
    """The gateway's command line; secrets are passed as files."""
    command = [sys.executable, "-m", "nvcf_gateway", "--http", addresses.http, "--grpc", addresses.grpc]
    command += ["--nats", addresses.nats, "--signing-key", str(installation.signing_key)]
    command += [
        "--bootstrap-keys",
        str(installation.bootstrap_keys),
        "--region",
        "local",
        "--regions",
        "local",
    ]
    if addresses.nats_credentials is not None:
        command += ["--nats-credentials", str(addresses.nats_credentials)]
    if addresses.callout_seed is not None:
        command += ["--callout-seed", str(addresses.callout_seed)]
    command += ["--log-level", log_level.upper()]
    return ChildSpec("gateway", command, installation.log("gateway"))


def agent_spec(installation: Installation, addresses: Addresses, log_level: str) -> ChildSpec:
    """The agent's command line; secrets are passed as files."""
    command = [sys.executable, "-m", "nvcf_agent", "--nats", addresses.nats]
    command += ["--gateway-http", f"http://{addresses.http}", "--worker-grpc", addresses.grpc]
    command += ["--worker-nats", addresses.nats, "--key-file", str(installation.agent_key)]
    command += ["--cluster", "local", "--data", str(installation.data), "--grace", str(AGENT_GRACE_SECONDS)]
    if addresses.nats_credentials is not None:
        command += ["--nats-credentials", str(addresses.nats_credentials)]
    command += ["--log-level", log_level.lower()]
    grace = AGENT_GRACE_SECONDS + _AGENT_EXTRA_SECONDS
    return ChildSpec("agent", command, installation.log("agent"), grace=grace)


def broker_spec(broker: LocalBroker) -> ChildSpec:
    """The local broker, already prepared."""

    async def wait_ready(_line: dict[str, Any]) -> None:
        await broker.wait_ready()

    # SIGTERM lets it close its files when `nvcf up` is killed; it has nobody else to wait for.
    return ChildSpec(
        "broker",
        broker.command,
        broker.files.log,
        ready_line=False,
        wait_ready=wait_ready,
        death_signal=signal.SIGTERM,
    )


@dataclass
class Platform:
    """The running tree. `say` gets a sentence about everything the user should know."""

    options: UpOptions
    say: Callable[[str], None]
    installation: Installation = field(init=False)
    state: PlatformState | None = None
    _tree: Tree = field(default_factory=Tree)
    _children: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.installation = Installation(self.options.data)

    async def start(self) -> PlatformState:
        """Start everything; ready when it returns. Raises `CliError`; then nothing is left running."""
        try:
            addresses = await self._start_broker()
            await self._add(gateway_spec(self.installation, addresses, self.options.log_level))
            await self._add(agent_spec(self.installation, addresses, self.options.log_level))
        except BrokerError as error:
            await self._tree.stop()
            raise CliError(str(error)) from error
        except BaseException:
            await self._tree.stop()
            raise
        self.state = PlatformState(
            pid=os.getpid(),
            url=f"http://{addresses.http}",
            grpc=addresses.grpc,
            nats=addresses.nats,
            key_file=str(self.installation.admin_key),
            data=str(self.installation.data),
            started_at=time.time(),
            children=dict(self._children),
        )
        write_state(self.installation, self.state)
        return self.state

    async def _start_broker(self) -> Addresses:
        ensure_keys(self.installation)
        options = self.options
        http = f"{_HOST}:{choose_http_port(options.http_port)}"
        grpc = f"{_HOST}:{free_port()}"
        if options.nats is not None:
            return Addresses(http, grpc, options.nats, options.nats_credentials, options.callout_seed)
        broker = LocalBroker(self.installation.broker)
        await asyncio.to_thread(broker.prepare)
        await self._add(broker_spec(broker))
        return Addresses(http, grpc, broker.url, broker.credentials_file, broker.callout_seed_file)

    async def _add(self, spec: ChildSpec) -> None:
        await self._tree.add(Child(spec, self._on_change))

    def _on_change(self, change: Change) -> None:
        self._children[change.name] = change.state
        if change.text:
            self.say(change.text)
        elif self.state is not None and change.state.state == "running":
            self.say(f"the {change.name} is back")
        if self.state is not None:
            self.state = replace(self.state, children=dict(self._children))
            write_state(self.installation, self.state)

    async def stop(self) -> None:
        """End agent (and its workers), gateway and broker in this order."""
        await self._tree.stop()

    def kill(self) -> None:
        """End everything at once."""
        self._tree.kill()


async def run_platform(
    options: UpOptions, *, on_ready: Callable[[PlatformState], None], say: Callable[[str], None]
) -> None:
    """Run until SIGINT or SIGTERM, then stop in order; a second signal kills. Raises `CliError`.

    The caller holds the data folder's lock.
    """
    platform = Platform(options, say)
    asked = asyncio.Queue[int]()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked.put_nowait, number)
    starting = asyncio.create_task(platform.start())
    first = asyncio.create_task(asked.get())
    try:
        await asyncio.wait({starting, first}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            on_ready(starting.result())
            await first
    finally:
        first.cancel()
        await _end(platform, starting, asked, say)


async def _end(
    platform: Platform,
    starting: "asyncio.Task[PlatformState]",
    asked: "asyncio.Queue[int]",
    say: Callable[[str], None],
) -> None:
    if not starting.done():
        starting.cancel()
    elif starting.exception() is None:
        say("stopping: the agent lets its workers finish (ctrl-c again kills them)")

    async def stop() -> None:
        await asyncio.wait({starting})
        await platform.stop()

    stopping = asyncio.create_task(stop())
    again = asyncio.create_task(asked.get())
    await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not stopping.done():
        platform.kill()
    await stopping
