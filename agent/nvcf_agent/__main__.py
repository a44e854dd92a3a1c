"""`python -m nvcf_agent`: the agent of one cluster, with the process backend."""

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import aiohttp

from nvcf_agent.agent import TERMINATION_GRACE_SECONDS, Agent, Mirrors
from nvcf_agent.backends.process import DEFAULT_CAPACITY, ProcessBackend
from nvcf_agent.environment import Endpoints
from nvcf_agent.errors import AgentError
from nvcf_agent.queues import StreamQueues
from nvcf_agent.tokens import GatewayTokens
from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.errors import BrokerError, BrokerUnavailableError
from nvcf_broker.files import private_directory
from nvcf_broker.kv import KvMirror
from nvcf_otel.logs import configure_logging
from nvcf_proto.models import (
    DEPLOYMENTS_BUCKET,
    INSTANCES_BUCKET,
    VERSIONS_BUCKET,
    Deployment,
    FunctionVersion,
    Instance,
)

_log = logging.getLogger(__name__)

T = TypeVar("T")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; argparse ends the process with exit code 2 for a wrong one."""
    parser = argparse.ArgumentParser(
        prog="nvcf-agent",
        description="Runs the instances of deployed functions as processes of this machine.",
    )
    parser.add_argument("--nats", required=True, metavar="URL", help="the broker, nats://HOST:PORT")
    parser.add_argument("--nats-credentials", type=Path, metavar="FILE", help="one line user:password")
    parser.add_argument("--gateway-http", required=True, metavar="URL", help="where worker tokens come from")
    parser.add_argument(
        "--worker-grpc", required=True, metavar="HOST:PORT", help="the gateway's gRPC address"
    )
    parser.add_argument("--worker-nats", required=True, metavar="URL", help="the broker as workers dial it")
    parser.add_argument("--key-file", required=True, type=Path, metavar="FILE", help="API key, scope agent")
    parser.add_argument("--cluster", default="local", metavar="ID", help="this cluster's id")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="instance folders and logs")
    parser.add_argument("--capacity", type=int, default=DEFAULT_CAPACITY, help="most instances at a time")
    parser.add_argument(
        "--grace",
        type=float,
        default=TERMINATION_GRACE_SECONDS,
        metavar="SECONDS",
        help="time to finish requests after SIGTERM, before SIGKILL",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser.parse_args(arguments)


@contextlib.contextmanager
def only_agent(data: Path, cluster: str) -> Iterator[None]:
    """Hold the data folder for this process. Raises `AgentError` if another agent has it."""
    private_directory(data)
    with (data / f"agent-{cluster}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AgentError(f"another agent of cluster {cluster} runs on {data}") from None
        yield


def read_key(path: Path) -> str:
    """The API key in a file. Raises `AgentError`."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AgentError(f"cannot read the key file {path}: {error}") from error
    if not key or "\n" in key:
        raise AgentError(f"{path} does not hold one API key")
    return key


async def serve(options: argparse.Namespace) -> None:
    """Run the agent until SIGTERM or SIGINT. Raises `AgentError` and `BrokerError`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    key = await asyncio.to_thread(read_key, options.key_file)
    client = await connect_broker(options.nats, options.nats_credentials, name=f"agent {options.cluster}")
    try:
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
            await _serve(options, client, GatewayTokens(session, options.gateway_http, key), stack, stop)
    finally:
        await client.close()


async def _serve(
    options: argparse.Namespace,
    client: BrokerClient,
    tokens: GatewayTokens,
    stack: contextlib.AsyncExitStack,
    stop: asyncio.Event,
) -> None:
    changed = asyncio.Event()

    def on_change(_key: str, _record: object) -> None:
        changed.set()

    deployments = KvMirror(
        client, DEPLOYMENTS_BUCKET, Deployment.from_json, Deployment.to_json, on_change=on_change
    )
    versions = KvMirror(
        client, VERSIONS_BUCKET, FunctionVersion.from_json, FunctionVersion.to_json, on_change=on_change
    )
    instances = KvMirror(client, INSTANCES_BUCKET, Instance.from_json, Instance.to_json, on_change=on_change)
    for mirror in (deployments, versions, instances):
        await stack.enter_async_context(mirror)
    await asyncio.gather(deployments.ready(), versions.ready(), instances.ready())
    backend = ProcessBackend(options.data, capacity=options.capacity)
    await backend.prepare()
    agent = Agent(
        cluster=options.cluster,
        backend=backend,
        mirrors=Mirrors(deployments, versions, instances),
        tokens=tokens,
        endpoints=Endpoints(grpc=options.worker_grpc, nats=options.worker_nats),
        queues=StreamQueues(client),
        grace=options.grace,
        woken=changed,
    )
    await backend.forget_unknown(agent.adopt())
    sys.stdout.write(json.dumps({"event": "ready", "cluster": options.cluster}) + "\n")
    sys.stdout.flush()
    async with asyncio.TaskGroup() as group:
        lost = group.create_task(_raise_when_closed(client))
        await agent.run(stop)
        lost.cancel()


async def _raise_when_closed(client: BrokerClient) -> None:
    await client.wait_closed()
    raise BrokerUnavailableError("the broker ended the connection for good, see its log")


def main() -> None:
    """Entry point; one line on standard error and exit code 1 for what the user can act on."""
    options = parse_arguments()
    configure_logging(options.log_level.upper(), component="agent")
    try:
        with only_agent(options.data.absolute(), options.cluster):
            asyncio.run(serve(options))
    except* (AgentError, BrokerError, OSError) as group:
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
