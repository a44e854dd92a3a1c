"""The agent of one machine: instances are its processes."""

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from nvcf_agent.accounts import AccountTelemetry
from nvcf_agent.agent import Agent
from nvcf_agent.backends.environment import WorkerTelemetry
from nvcf_agent.backends.isolation import Isolation, why_not_isolated
from nvcf_agent.backends.process import ProcessBackend
from nvcf_agent.backends.users import InstanceUsers, parse_range
from nvcf_agent.control_plane import ControlPlane
from nvcf_agent.errors import AgentError
from nvcf_agent.icms.client import IcmsClient
from nvcf_agent.icms.identity import Identity
from nvcf_agent.options import allowed, attributes, discovery
from nvcf_agent.prometheus_sd import PrometheusTargets
from nvcf_agent.requests import Requests
from nvcf_agent.secret_files import FileSink, SecretFolders
from nvcf_agent.secrets import GatewaySecrets, InstanceSecrets
from nvcf_agent.serving import Ready, connector
from nvcf_agent.state.machine_inventory import MachineInventory
from nvcf_agent.state.persisted_state import FileStore, PersistedState
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_agent.timings import Timings
from nvcf_broker.files import private_directory
from nvcf_otel.setup import Telemetry
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


def check(options: argparse.Namespace) -> None:
    """Raise `AgentError` if the options cannot be used."""
    discovery(options)
    attributes(options)
    allowed(options)
    parse_range(options.instance_uid_range)


async def serve(options: argparse.Namespace, telemetry: Telemetry, stop: asyncio.Event) -> None:
    """Run the agent until `stop` is set. Raises `AgentError` and `BrokerError`."""
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
        connect = connector(options.nats, options.cluster_id, identity, telemetry)
        await control_plane.run(connect, stop, Ready(control_plane, telemetry, options.metrics).tell)


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
