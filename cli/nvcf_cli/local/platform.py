"""`nvcf up`: broker, gateway, agents and autoscaler as one supervised tree."""

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from nvcf_broker.disk import move_control_streams
from nvcf_broker.errors import BrokerError
from nvcf_broker.files import private_directory, write_private
from nvcf_broker.process import free_port, port_is_free
from nvcf_broker.server import LocalBroker
from nvcf_cli.access import read_key
from nvcf_cli.api import Target
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.local.clusters import register_clusters
from nvcf_cli.local.processes import (
    AGENT_GRACE_SECONDS,
    Addresses,
    ClusterPlan,
    Durability,
    agent_spec,
    autoscaler_spec,
    broker_spec,
    gateway_spec,
)
from nvcf_cli.local.scrape import write_scrape_files
from nvcf_cli.local.state import Installation, PlatformState, write_state
from nvcf_cli.local.store_watch import StoreWatch
from nvcf_cli.local.supervisor import Change, Child, ChildSpec, Tree
from nvcf_gateway.errors import SetupError
from nvcf_gateway.secrets.keys import FIRST_KEY_NAME, KEY_SUFFIX, create_sealing_key
from nvcf_proto.budget import size_text
from nvcf_proto.errors import ContractError
from nvcf_proto.models import ApiKey, Scope
from nvcf_proto.models.keys import api_key_id, hash_api_key, new_api_key

_log = logging.getLogger(__name__)

DEFAULT_HTTP_PORT = 8080
LOCAL_ACCOUNT = "local"
_HOST = "127.0.0.1"
_MAX_PORT = 65535


@dataclass(frozen=True)
class UpOptions:
    """What the user chose. Without `nats` the platform runs a broker of its own."""

    data: Path
    http_port: int | None = None
    nats: str | None = None
    nats_credentials: Path | None = None
    control_credentials: Path | None = None
    callout_seed: Path | None = None
    clusters: ClusterPlan = field(default_factory=ClusterPlan)
    metrics: bool = True
    log_level: str = "info"
    sessions: str | None = None
    data_max: int | None = None
    durability: Durability = Durability.PROMISES
    quotas: tuple[str, ...] = ()


def choose_http_port(wanted: int | None) -> int:
    """Return the wanted port, else 8080 if it is free, else any. Raises `CliError` if it is taken."""
    if wanted is None:
        return DEFAULT_HTTP_PORT if port_is_free(DEFAULT_HTTP_PORT) else free_port()
    if wanted == 0:
        return free_port()
    if not port_is_free(wanted):
        raise CliError(f"port {wanted} is taken: choose another one with --http-port (0 takes any)")
    return wanted


def choose_sessions(wanted: str | None) -> str | None:
    """Return the address for gRPC and WebSocket callers: HOST:PORT, port 0 = any that is free.

    Raises `UsageError` for text that is no address and `CliError` if nothing can listen there.
    """
    if wanted is None:
        return None
    host, separator, port = wanted.rpartition(":")
    if not separator or not (port.isascii() and port.isdigit()) or int(port) > _MAX_PORT:
        raise UsageError(f"--sessions {wanted}: HOST:PORT expected, e.g. 127.0.0.1:8090")
    host, number = host or _HOST, int(port)
    # The gateway itself finds out about IPv6.
    if number and (":" in host or port_is_free(number, host)):
        return f"{host}:{number}"
    if number or ":" in host:
        raise CliError(f"nothing can listen on {wanted}: choose another port with --sessions")
    return f"{host}:{free_port(host)}"


def keep_worker_port(installation: Installation) -> tuple[int, bool]:
    """Return the gateway's port for workers, and whether it is another one than before.

    Instances that outlive this platform's end start again with the address that they were created with.
    """
    try:
        known = int(installation.worker_port.read_text(encoding="ascii"))
    except (OSError, ValueError):
        known = 0
    if known and port_is_free(known):
        return known, False
    port = free_port()
    write_private(installation.worker_port, f"{port}\n")
    return port, known != 0


def ensure_keys(installation: Installation) -> None:
    """Make the admin key, and its record (the hash only) that a gateway takes it from."""
    records = [_ensure_key(installation.admin_key, "made by nvcf up for its user")]
    document = json.dumps([record.to_dict() for record in records], indent=1)
    write_private(installation.bootstrap_keys, document + "\n")


def ensure_sealing_key(installation: Installation) -> None:
    """Make the first key that seals secrets. One that is lost is not replaced while others are there."""
    folder = private_directory(installation.sealing_keys)
    if not any(folder.glob(f"*{KEY_SUFFIX}")):
        try:
            create_sealing_key(folder / FIRST_KEY_NAME)
        except SetupError as error:
            raise CliError(str(error)) from error


def _ensure_key(path: Path, description: str) -> ApiKey:
    if not path.exists():
        write_private(path, new_api_key() + "\n")
    text = read_key(path)
    try:
        key_id = api_key_id(text)
    except ContractError as error:
        raise CliError(f"{path} holds no API key: delete it to get a new one") from error
    return ApiKey(
        id=key_id,
        secret_hash=hash_api_key(text),
        nca_id=LOCAL_ACCOUNT,
        scopes=(Scope.ADMIN, Scope.OPERATOR),
        created_at=time.time(),
        description=description,
    )


@dataclass
class Platform:
    """The running tree. `say` gets each message to the user."""

    options: UpOptions
    say: Callable[[str], None]
    installation: Installation = field(init=False)
    state: PlatformState | None = None
    _broker: str | None = None
    _tree: Tree = field(default_factory=Tree)
    _children: dict[str, Any] = field(default_factory=dict)
    _watching: "asyncio.Task[None] | None" = None
    _moved: bool = False

    def __post_init__(self) -> None:
        self.installation = Installation(self.options.data)

    async def start(self) -> PlatformState:
        """Start everything; ready when it returns. Raises `CliError`; then nothing is left running."""
        try:
            addresses = await self._start_broker()
            await self._start_rest(addresses)
        except (BrokerError, OSError) as error:
            await self.stop()
            raise CliError(str(error)) from error
        except BaseException:
            await self.stop()
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
            metrics=dict(addresses.metrics),
            sessions=addresses.sessions,
            broker=self._broker,
        )
        write_scrape_files(self.installation, addresses.metrics)
        write_state(self.installation, self.state)
        return self.state

    async def _start_broker(self) -> Addresses:
        ensure_keys(self.installation)
        ensure_sealing_key(self.installation)
        options = self.options
        http = f"{_HOST}:{choose_http_port(options.http_port)}"
        port, self._moved = keep_worker_port(self.installation)
        grpc = f"{_HOST}:{port}"
        metrics = self._metrics_addresses()
        sessions = choose_sessions(options.sessions)
        if options.nats is not None:
            credentials, control = options.nats_credentials, options.control_credentials
            seed = options.callout_seed
            return Addresses(http, grpc, options.nats, credentials, seed, metrics, sessions, control)
        broker = LocalBroker(
            self.installation.broker,
            data_max=options.data_max,
            sync_always=options.durability is Durability.ALWAYS,
        )
        await asyncio.to_thread(move_control_streams, broker.files.store)
        await asyncio.to_thread(broker.prepare)
        self._broker = str(broker.binary)
        self._say_budget(broker)
        watch = StoreWatch(broker.files.directory, self._restart_broker, self.say)
        await self._add(replace(broker_spec(broker), on_errors=watch.feed))
        self._watching = asyncio.create_task(watch.run(), name="store watch")
        credentials, control = broker.credentials_file, broker.control_credentials_file
        seed = broker.callout_seed_file
        store = broker.files.store if options.durability is Durability.PROMISES else None
        system = broker.system_credentials_file
        return Addresses(http, grpc, broker.url, credentials, seed, metrics, sessions, control, store, system)

    def _say_budget(self, broker: LocalBroker) -> None:
        if broker.budget is not None:
            total, reserve = size_text(broker.budget.total), size_text(broker.budget.control)
            wanted = self.options.data_max or 0
            later = ", less at the next start" if wanted and wanted < broker.budget.total else ""
            self.say(
                f"data takes at most {total} of the disk, {reserve} of it for the platform's records{later}"
            )

    def _metrics_addresses(self) -> dict[str, str]:
        if not self.options.metrics:
            return {}
        plan = self.options.clusters
        names = ["gateway", *(plan.child(each) for each in plan.names()), "autoscaler"]
        return {name: f"{_HOST}:{free_port()}" for name in names}

    async def _start_rest(self, addresses: Addresses) -> None:
        here, plan, level = self.installation, self.options.clusters, self.options.log_level
        await self._add(gateway_spec(here, addresses, level, self.options.quotas))
        # Before the agents: the instances that they start again may take all CPU time for a while. It ends
        # before them too: what agents end when they stop is not to be replaced elsewhere.
        await self._add(autoscaler_spec(here, addresses, level))
        target = Target(f"http://{addresses.http}", read_key(here.admin_key))
        # Instances that know another address cannot start again: those of new clusters know the right one.
        ids = await register_clusters(here, target, plan.names(), anew=self._moved)
        agents = (agent_spec(here, addresses, plan, name, ids[name], level) for name in plan.names())
        await self._add(*agents, outlives_last=True)

    async def _add(self, *specs: ChildSpec, outlives_last: bool = False) -> None:
        children = (Child(spec, self._on_change) for spec in specs)
        await self._tree.add(*children, outlives_last=outlives_last)

    def _on_change(self, change: Change) -> None:
        self._children[change.name] = change.state
        if change.text:
            self.say(change.text)
        elif self.state is not None and change.state.state == "running":
            self.say(f"the {change.name} is back")
        if self.state is not None:
            self.state = msgspec.structs.replace(self.state, children=dict(self._children))
            try:
                write_state(self.installation, self.state)
            except OSError as error:
                # The disk may be full: the platform goes on, and the next change writes all of it.
                _log.warning("cannot write %s: %s", self.installation.state, error)

    async def _restart_broker(self) -> None:
        await self._tree.groups[0][0].restart()

    async def stop(self) -> None:
        """End autoscaler, agents (and their workers), gateway and broker in this order."""
        if self._watching is not None:
            self._watching.cancel()
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
        say(
            f"stopping: workers have {AGENT_GRACE_SECONDS:g} s to finish what they hold; what takes longer "
            "is cut, and kept calls run again at the next start (ctrl-c again kills at once)"
        )

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
