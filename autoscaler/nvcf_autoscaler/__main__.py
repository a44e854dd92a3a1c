"""`python -m nvcf_autoscaler`: run one replica of the autoscaler until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_autoscaler.shell.actuation import Actuator
from nvcf_autoscaler.shell.control import Control
from nvcf_autoscaler.shell.lease import LEASES_BUCKET, Lease, LeaseRecord
from nvcf_autoscaler.shell.world import World
from nvcf_broker.connection import connect_broker, describe_error
from nvcf_broker.errors import BrokerError, BrokerUnavailableError
from nvcf_broker.kv import KvMirror
from nvcf_broker.requests import BrokerRequests
from nvcf_otel.logs import configure_logging
from nvcf_proto import compute
from nvcf_proto.compute import DemandReport
from nvcf_proto.errors import ContractError
from nvcf_proto.ids import new_id

_log = logging.getLogger(__name__)

_STREAM_NAME_IN_USE = 10058


@dataclass(frozen=True)
class Options:
    """Settings of one replica."""

    nats: str
    nats_credentials: Path | None
    replica_id: str
    regions: tuple[str, ...]
    replicas: int
    log_level: str


def parse_arguments(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="nvcf-autoscaler", description="Keep as many instances as the demand needs, and say why."
    )
    add = parser.add_argument
    add("--nats", default="nats://127.0.0.1:4222", metavar="URL", help="broker, several with commas")
    add("--nats-credentials", type=Path, metavar="FILE", help="one line user:password, mode 0600")
    add("--replica-id", default="", help="name of this replica among several (default: made up)")
    add("--regions", default="local", help="regions whose queues count, with commas")
    add("--replicas", type=int, default=1, help="copies of streams and buckets in a broker cluster")
    add("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    values = parser.parse_args(arguments)
    regions = tuple(part.strip() for part in values.regions.split(",") if part.strip())
    return Options(
        values.nats,
        values.nats_credentials,
        values.replica_id or new_id(),
        regions or ("local",),
        values.replicas,
        values.log_level,
    )


async def serve(options: Options) -> None:
    """Run until told to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        client = await connect_broker(
            options.nats, options.nats_credentials, name=f"autoscaler_{options.replica_id}"
        )
        stack.push_async_callback(client.close)
        requests = BrokerRequests(client)
        await requests.start()
        await _ensure_streams(requests, options.replicas)
        leases = KvMirror(
            client, LEASES_BUCKET, LeaseRecord.from_json, LeaseRecord.to_json, replicas=options.replicas
        )
        await stack.enter_async_context(leases)
        await leases.ready()
        lease = Lease(leases, "autoscaler", options.replica_id, time.monotonic)
        control: Control | None = None

        def changed(version_id: str) -> None:
            if control is not None:
                control.wake(version_id)

        world = World(client, changed, options.replicas)
        actuator = Actuator(client, requests, world)
        control = Control(world, requests, actuator, lease, options.regions)
        await world.start(stack)
        await _listen(client, control)
        print(json.dumps({"event": "ready", "replicaId": options.replica_id}), flush=True)  # noqa: T201
        await _run(stop, lease, control, world)
        await lease.give_up()


async def _run(stop: asyncio.Event, lease: Lease, control: Control, world: World) -> None:
    def led(held: bool) -> None:
        if held:
            for version_id in world.version_ids():
                control.wake(version_id)

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(lease.keep(led)), tasks.create_task(control.run())]
        await stop.wait()
        for task in running:
            task.cancel()


async def _listen(client: Client, control: Control) -> None:
    async def reported(message: Msg) -> None:
        try:
            report = DemandReport.from_json(message.data)
        except ContractError as error:
            _log.warning("demand report ignored: %s", error)
            return
        control.watched(report.version_id).demand.take(report)

    async def woken(message: Msg) -> None:
        control.wake(message.subject.rpartition(".")[2])

    await client.subscribe(compute.DEMAND_SUBJECTS, cb=reported)
    await client.subscribe(compute.WAKE_SUBJECTS, cb=woken)
    await client.flush(timeout=5)


async def _ensure_streams(requests: BrokerRequests, replicas: int) -> None:
    for config in (
        compute.work_stream_config(compute.CREATE_STREAM, compute.CREATE_SUBJECTS, replicas),
        compute.work_stream_config(compute.TERMINATE_STREAM, compute.TERMINATE_SUBJECTS, replicas),
        compute.event_stream_config(replicas),
    ):
        try:
            answer = await requests.request(
                f"$JS.API.STREAM.CREATE.{config['name']}", json.dumps(config).encode(), timeout=5
            )
        except (nats.errors.Error, TimeoutError) as error:
            raise BrokerUnavailableError(f"stream {config['name']}: {describe_error(error)}") from error
        problem = json.loads(answer.data).get("error")
        if problem is not None and problem.get("err_code") != _STREAM_NAME_IN_USE:
            raise BrokerError(f"cannot create stream {config['name']}: {problem.get('description')}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse_arguments(arguments)
    configure_logging(options.log_level, component="autoscaler")
    try:
        asyncio.run(serve(options))
    except BrokerError as error:
        print(f"nvcf-autoscaler: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
