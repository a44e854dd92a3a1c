"""`python -m nvcf_agent`: the agent of one cluster, with the process backend."""

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from nvcf_agent.accounts import AccountTelemetry
from nvcf_agent.agent import Agent
from nvcf_agent.backends.environment import WorkerTelemetry
from nvcf_agent.backends.isolation import Isolation, why_not_isolated
from nvcf_agent.backends.process import ProcessBackend
from nvcf_agent.backends.users import InstanceUsers, parse_range
from nvcf_agent.control_plane import ControlPlane
from nvcf_agent.errors import AgentError, IdentityError
from nvcf_agent.icms.client import IcmsClient
from nvcf_agent.icms.identity import Identity
from nvcf_agent.options import allowed, attributes, discovery, parse_arguments
from nvcf_agent.prometheus_sd import PrometheusTargets
from nvcf_agent.requests import Requests
from nvcf_agent.secret_files import FileSink, SecretFolders
from nvcf_agent.secrets import GatewaySecrets, InstanceSecrets
from nvcf_agent.state.machine_inventory import MachineInventory
from nvcf_agent.state.persisted_state import FileStore, PersistedState
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_agent.timings import Timings
from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.errors import BrokerError
from nvcf_broker.files import private_directory
from nvcf_otel import names
from nvcf_otel.errors import TelemetryError
from nvcf_otel.logs import configure_logging
from nvcf_otel.service import metrics_host, observed, service_telemetry
from nvcf_otel.setup import Telemetry
from nvcf_proto.icms.names import agent_connection_name, agent_inbox_prefix, encode_agent_token
from nvcf_proto.settings import INFERENCE_READY_TIMEOUT

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def only_agent(data: Path) -> Iterator[None]:
    """Lock the data folder for this process. Raises `AgentError` if another agent has it."""
    private_directory(data)
    with (data / "agent.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AgentError(f"another agent runs on {data}") from None
        yield


async def serve(options: argparse.Namespace, telemetry: Telemetry) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises `AgentError` and `BrokerError`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    identity = Identity(options.key_file or options.token_file)
    await identity.current()
    inventory = await discovery(options).discover()
    async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
        icms = IcmsClient(session, options.icms, options.cluster_id, identity)
        control_plane = ControlPlane(
            icms,
            options.cluster_id,
            Timings().scaled(options.time_scale),
            options.heartbeat,
            attributes(options),
        )
        folders = SecretFolders(options.data.absolute())
        secrets = InstanceSecrets(GatewaySecrets(session, icms), FileSink(folders))
        await stack.enter_async_context(secrets)
        agent = await _make_agent(options, inventory, control_plane, secrets, folders)
        await agent.adopt()

        @contextlib.asynccontextmanager
        async def connect() -> AsyncIterator[BrokerClient]:
            client = await connect_broker(
                options.nats,
                name=agent_connection_name(options.cluster_id),
                inbox_prefix=agent_inbox_prefix(options.cluster_id),
                token=lambda: _broker_token(identity),
            )
            try:
                async with observed(telemetry, client):
                    yield client
            finally:
                await client.close()

        ready = Ready(options, telemetry, control_plane)
        await control_plane.run(connect, stop, ready.tell)


def _broker_token(identity: Identity) -> str:
    """Return what the agent sends when it connects to the broker."""
    try:
        return encode_agent_token(identity.read(), own_inbox=True)
    except IdentityError as error:
        # The broker refuses this one; the next attempt reads the file again.
        _log.warning("%s", error)
        return ""


async def _make_agent(
    options: argparse.Namespace,
    inventory: MachineInventory,
    control_plane: ControlPlane,
    secrets: InstanceSecrets,
    folders: SecretFolders,
) -> Agent:
    data = options.data.absolute()
    backend = ProcessBackend(
        options.data,
        inventory,
        cgroup=options.cgroup,
        collector=options.collector,
        allowed=allowed(options),
        isolation=await asyncio.to_thread(_isolation, options),
        secrets=secrets,
    )
    operators = WorkerTelemetry.of(
        os.environ, metrics=options.worker_metrics, passed_on=options.worker_telemetry
    )
    cluster = options.cluster_id
    requests = Requests(
        inventory,
        PersistedState(FileStore(data / "requests"), cluster),
        control_plane.timings,
        options.grace,
    )
    agent = Agent(
        requests=requests,
        backend=backend,
        telemetry=AgentTelemetry(cluster),
        worker_telemetry=operators,
        accounts=AccountTelemetry(
            (options.telemetry_secrets or options.data / "telemetry-secrets").absolute(),
            operators,
            cluster,
            secrets.of_telemetries,
            folders.telemetry,
        ),
        targets=PrometheusTargets(data / "metrics" / "instances.json", cluster)
        if options.worker_metrics
        else None,
        ready_timeout=options.max_ready_seconds or INFERENCE_READY_TIMEOUT,
        keep_finished=options.keep_finished,
    )
    agent.telemetry.register_gpus(agent.usage)
    control_plane.bind(agent)
    return agent


def _isolation(options: argparse.Namespace) -> Isolation | None:
    numbers = parse_range(options.instance_uid_range)
    reason = "--instance-uid-range none" if numbers is None else why_not_isolated()
    if numbers is None or reason is not None:
        _log.warning("functions run as this agent's user and can read what it can: %s", reason)
        return None
    data = options.data.absolute()
    return Isolation(data, InstanceUsers(data / "users.json", numbers), allowed(options))


@dataclass
class Ready:
    """Writes the line that reports readiness to standard output, once."""

    options: argparse.Namespace
    telemetry: Telemetry
    control_plane: ControlPlane
    told: bool = False

    def tell(self) -> None:
        """Write the line."""
        if self.told:
            return
        self.told = True
        line = {"event": "ready", "cluster": str(self.options.cluster_id)}
        if self.control_plane.cluster_name is not None:
            line["name"] = self.control_plane.cluster_name
        metrics = metrics_host(self.telemetry, self.options.metrics)
        sys.stdout.write(json.dumps(line if metrics is None else {**line, "metrics": metrics}) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Run the command. An error the user can act on is one line on standard error and exit code 1."""
    options = parse_arguments()
    configure_logging(options.log_level.upper(), component="agent")
    try:
        discovery(options)
        attributes(options)
        allowed(options)
        parse_range(options.instance_uid_range)
        with only_agent(options.data.absolute()):
            identity = f"{options.cluster_id}-{os.getpid()}"
            about = {names.CLUSTER: options.cluster_id}
            with service_telemetry("agent", identity, options.metrics, about) as telemetry:
                asyncio.run(serve(options, telemetry))
    except* (AgentError, BrokerError, TelemetryError, OSError) as group:
        for error in _leaves(group):
            _log.error("%s", error)
        sys.exit(1)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


if __name__ == "__main__":
    main()
