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
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import nats.errors

from nvcf_agent.accounts import AccountTelemetry
from nvcf_agent.agent import Agent
from nvcf_agent.backends.environment import Endpoints, WorkerTelemetry
from nvcf_agent.backends.isolation import Isolation, why_not_isolated
from nvcf_agent.backends.process import ProcessBackend
from nvcf_agent.backends.users import InstanceUsers, parse_range
from nvcf_agent.errors import AgentError
from nvcf_agent.heartbeat import Heartbeat
from nvcf_agent.messages import Consumer, Source
from nvcf_agent.options import (
    allowed,
    attributes,
    cluster_id,
    inventory,
    parse_arguments,
)
from nvcf_agent.prometheus_sd import PrometheusTargets
from nvcf_agent.records import Records
from nvcf_agent.requeue import Requeuer
from nvcf_agent.secret_files import SecretFolders
from nvcf_agent.secrets import GatewaySecrets, InstanceSecrets
from nvcf_agent.state.persisted_state import FileStore, PersistedState
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_agent.tokens import GatewayTokens
from nvcf_broker.connection import BrokerClient, connect_broker, describe_error
from nvcf_broker.errors import BrokerError, BrokerUnavailableError
from nvcf_broker.files import private_directory
from nvcf_broker.jetstream import JetStream
from nvcf_broker.kv import KvMirror
from nvcf_otel import names
from nvcf_otel.errors import TelemetryError
from nvcf_otel.logs import configure_logging
from nvcf_otel.service import metrics_host, observed, service_telemetry
from nvcf_otel.setup import Telemetry
from nvcf_proto.compute import (
    CREATE_STREAM,
    CREATE_SUBJECTS,
    TERMINATE_STREAM,
    TERMINATE_SUBJECTS,
    Cluster,
    cluster_create_filter,
    event_stream_config,
    terminate_subject,
)
from nvcf_proto.models import (
    INSTANCES_BUCKET,
    TELEMETRIES_BUCKET,
    VERSIONS_BUCKET,
    FunctionVersion,
    Instance,
    TelemetryEndpoint,
)
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


def read_key(path: Path) -> str:
    """Return the API key in a file. Raises `AgentError`."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AgentError(f"cannot read the key file {path}: {error}") from error
    if not key or "\n" in key:
        raise AgentError(f"the key file {path} must contain exactly one API key")
    return key


async def serve(options: argparse.Namespace, telemetry: Telemetry) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises `AgentError` and `BrokerError`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    key = await asyncio.to_thread(read_key, options.key_file)
    client = await connect_broker(options.nats, options.nats_credentials, name=f"agent {options.cluster}")
    try:
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(observed(telemetry, client))
            tokens = GatewayTokens(session, options.gateway_http, key)
            source = GatewaySecrets(session, options.gateway_http, key)
            folders = SecretFolders(options.data.absolute())
            secrets = await stack.enter_async_context(InstanceSecrets(source, folders))
            agent = await _make_agent(options, client, tokens, secrets, folders, stack)
            await _work(client, agent, stop, _cluster(options), _ready(options, telemetry))
    except nats.errors.Error as error:
        raise BrokerUnavailableError(f"cannot use the broker: {describe_error(error)}") from error
    finally:
        await client.close()


async def _make_agent(
    options: argparse.Namespace,
    client: BrokerClient,
    tokens: GatewayTokens,
    secrets: InstanceSecrets,
    folders: SecretFolders,
    stack: contextlib.AsyncExitStack,
) -> Agent:
    woken = asyncio.Event()

    def on_change(_key: str, _record: object) -> None:
        woken.set()

    versions = KvMirror(
        client, VERSIONS_BUCKET, FunctionVersion.from_json, FunctionVersion.to_json, on_change=on_change
    )
    instances = KvMirror(client, INSTANCES_BUCKET, Instance.from_json, Instance.to_json, on_change=on_change)
    telemetries = KvMirror(client, TELEMETRIES_BUCKET, TelemetryEndpoint.from_json, TelemetryEndpoint.to_json)
    for mirror in (versions, instances, telemetries):
        await stack.enter_async_context(mirror)
    await asyncio.gather(versions.ready(), instances.ready(), telemetries.ready())
    backend = ProcessBackend(
        options.data,
        inventory(options),
        cgroup=options.cgroup,
        collector=options.collector,
        allowed=allowed(options),
        isolation=await asyncio.to_thread(_isolation, options),
        secrets=secrets,
    )
    capacity = await backend.capacity()
    telemetry = AgentTelemetry(options.cluster)
    operators = WorkerTelemetry.of(
        os.environ, metrics=options.worker_metrics, passed_on=options.worker_telemetry
    )
    agent = Agent(
        cluster=options.cluster,
        backend=backend,
        persisted=PersistedState(FileStore(options.data.absolute() / "requests")),
        records=Records(client, instances, options.cluster),
        versions=versions,
        tokens=tokens,
        endpoints=Endpoints(grpc=options.worker_grpc, nats=options.worker_nats),
        inventory=capacity,
        telemetry=telemetry,
        worker_telemetry=operators,
        accounts=AccountTelemetry(
            telemetries.get,
            (options.telemetry_secrets or options.data / "telemetry-secrets").absolute(),
            operators,
            options.cluster,
            secrets.of_telemetries,
            folders.telemetry,
        ),
        targets=PrometheusTargets(options.data.absolute() / "metrics" / "instances.json")
        if options.worker_metrics
        else None,
        requeuer=Requeuer(client, options.data.absolute() / "instances"),
        grace=options.grace,
        ready_timeout=options.max_ready_seconds or INFERENCE_READY_TIMEOUT,
        keep_finished=options.keep_finished,
        woken=woken,
    )
    telemetry.register_gpus(capacity, lambda: [each.held for each in agent.instances()])
    await agent.adopt()
    return agent


def _isolation(options: argparse.Namespace) -> Isolation | None:
    numbers = parse_range(options.instance_uid_range)
    reason = "--instance-uid-range none" if numbers is None else why_not_isolated()
    if numbers is None or reason is not None:
        _log.warning("functions run as this agent's user and can read what it can: %s", reason)
        return None
    data = options.data.absolute()
    return Isolation(data, InstanceUsers(data / "users.json", numbers), allowed(options))


def _consumers(client: BrokerClient, agent: Agent) -> tuple[Consumer, Consumer]:
    cluster = agent.cluster
    creations = Source(CREATE_STREAM, CREATE_SUBJECTS, cluster_create_filter(cluster), cluster)
    terminations = Source(TERMINATE_STREAM, TERMINATE_SUBJECTS, terminate_subject(cluster), cluster)
    timed = agent.telemetry.timed
    return (
        Consumer(client, creations, timed("create", agent.create)),
        Consumer(client, terminations, timed("terminate", agent.terminate)),
    )


def _cluster(options: argparse.Namespace) -> Cluster:
    return Cluster(
        id=options.cluster,
        region=options.region,
        heartbeat_at=0.0,
        pools=(),
        group=options.cluster_group,
        backend="process",
        attributes=attributes(options),
    )


def _ready(options: argparse.Namespace, telemetry: Telemetry) -> dict[str, str]:
    """Return the line for standard output that reports readiness."""
    line = {"event": "ready", "cluster": str(options.cluster)}
    metrics = metrics_host(telemetry, options.metrics)
    return line if metrics is None else {**line, "metrics": metrics}


async def _work(
    client: BrokerClient, agent: Agent, stop: asyncio.Event, cluster: Cluster, ready: dict[str, str]
) -> None:
    heartbeat = Heartbeat(client, cluster, agent.pools, time.time, agent.changed)
    consumers = _consumers(client, agent)
    await JetStream(client).ensure_stream(event_stream_config())
    for consumer in consumers:
        await consumer.ensure()
    await heartbeat.ensure()
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    async with asyncio.TaskGroup() as group:
        lost = group.create_task(_raise_when_closed(client))
        tasks = [group.create_task(each.run()) for each in (*consumers, heartbeat)]

        async def leave() -> None:
            await stop.wait()
            # From here on the cluster gets no new instances, and those it ends are replaced elsewhere.
            for task in tasks:
                task.cancel()
            await heartbeat.beat(draining=True)

        leaving = group.create_task(leave())
        await agent.run(stop)
        await leaving
        lost.cancel()


async def _raise_when_closed(client: BrokerClient) -> None:
    await client.wait_closed()
    raise BrokerUnavailableError("the broker ended the connection for good, see its log")


def main() -> None:
    """Run the command. An error the user can act on is one line on standard error and exit code 1."""
    options = parse_arguments()
    configure_logging(options.log_level.upper(), component="agent")
    try:
        cluster_id(options)
        inventory(options)
        attributes(options)
        allowed(options)
        parse_range(options.instance_uid_range)
        with only_agent(options.data.absolute()):
            identity = f"{options.cluster}-{os.getpid()}"
            about = {"cloud.region": options.region, names.CLUSTER: options.cluster}
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
