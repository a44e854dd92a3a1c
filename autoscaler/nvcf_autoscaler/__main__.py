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

import grpc
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_autoscaler.controller.actuation import Actuator
from nvcf_autoscaler.controller.cache import World
from nvcf_autoscaler.controller.lease import LEASES_BUCKET, Lease, LeaseRecord
from nvcf_autoscaler.controller.loop import Control
from nvcf_autoscaler.controller.reconcile import LOST_AFTER, Looker
from nvcf_autoscaler.controller.recorder import Recorder
from nvcf_autoscaler.controller.service import AutoscalerService
from nvcf_autoscaler.errors import AutoscalerError
from nvcf_autoscaler.placement.fairness import TURN
from nvcf_autoscaler.telemetry.snapshot import Board
from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import JetStream
from nvcf_broker.kv import KvMirror
from nvcf_broker.requests import ReplyInbox
from nvcf_otel.errors import TelemetryError
from nvcf_otel.logs import configure_logging
from nvcf_otel.service import metrics_host, observed, service_telemetry
from nvcf_otel.setup import Telemetry
from nvcf_otel.spans import parse
from nvcf_proto import compute
from nvcf_proto.compute import DemandReport
from nvcf_proto.errors import ContractError
from nvcf_proto.ids import new_id
from nvcf_proto.models import API_KEYS_BUCKET, ApiKey
from nvcf_proto.pb import nvcf_pb2_grpc

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Settings of one replica."""

    nats: str
    nats_credentials: Path | None
    replica_id: str
    regions: tuple[str, ...]
    replicas: int
    lost_after: float
    turn: float
    grpc: str | None
    metrics: str | None
    log_level: str


def parse_arguments(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="nvcf-autoscaler", description="Keep as many instances as the demand needs, and say why."
    )
    add = parser.add_argument
    add("--nats", default="nats://127.0.0.1:4222", metavar="URL", help="broker, several with commas")
    add("--nats-credentials", type=Path, metavar="FILE", help="one line user:password, mode 0600")
    add("--replica-id", default="", help="name of this replica, like no other one's (default: made up)")
    add("--regions", default="local", help="regions whose queues count, with commas")
    add("--replicas", type=int, default=1, help="copies of streams and buckets in a broker cluster")
    add(
        "--lost-after",
        type=float,
        default=LOST_AFTER,
        metavar="SECONDS",
        help="instances of a cluster that was silent for so long are replaced elsewhere",
    )
    add(
        "--turn",
        type=float,
        default=TURN,
        metavar="SECONDS",
        help="how long a version keeps its only instance while others have none and GPUs are short",
    )
    add("--grpc", metavar="HOST:PORT", help="also serve nvcf.Autoscaler there, in plain text")
    add("--metrics", metavar="HOST:PORT", help="serve metrics for Prometheus there (default: not)")
    add("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    values = parser.parse_args(arguments)
    regions = tuple(part.strip() for part in values.regions.split(",") if part.strip())
    return Options(
        values.nats,
        values.nats_credentials,
        values.replica_id or new_id(),
        regions or ("local",),
        values.replicas,
        values.lost_after,
        values.turn,
        values.grpc,
        values.metrics,
        values.log_level,
    )


async def serve(options: Options, telemetry: Telemetry) -> None:
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
        await stack.enter_async_context(observed(telemetry, client))
        requests = ReplyInbox(client)
        await requests.start()
        await _ensure_streams(JetStream(requests), options.replicas)
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

        def capacity_changed() -> None:
            if control is not None:
                control.wake_short()

        world = World(client, changed, capacity_changed, options.replicas)
        board = Board(lambda: lease.held)
        board.observe()
        recorder = Recorder(board)
        looker = Looker(
            world,
            requests,
            Actuator(client, requests, world),
            lease,
            options.regions,
            recorder,
            options.lost_after,
            options.turn,
        )
        control = Control(looker, world.version_ids, lambda: lease.held, recorder.gone)
        await world.start(stack)
        await _listen(client, control)
        ready = {"event": "ready", "replicaId": options.replica_id}
        if options.grpc is not None:
            ready["grpc"] = await _serve_grpc(stack, options, client, world)
        metrics = metrics_host(telemetry, options.metrics)
        if metrics is not None:
            ready["metrics"] = metrics
        print(json.dumps(ready), flush=True)  # noqa: T201
        await _run(stop, lease, control)
        await lease.give_up()


async def _serve_grpc(stack: AsyncExitStack, options: Options, client: BrokerClient, world: World) -> str:
    address = options.grpc or ""
    keys = KvMirror(client, API_KEYS_BUCKET, ApiKey.from_json, ApiKey.to_json, replicas=options.replicas)
    await stack.enter_async_context(keys)
    await keys.ready()
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", 64 * 1024), ("grpc.so_reuseport", 0)]
    )
    nvcf_pb2_grpc.add_AutoscalerServicer_to_server(AutoscalerService(world, world.orders, keys), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise AutoscalerError(
            f"cannot listen on {address} (gRPC): choose another --grpc HOST:PORT"
        ) from error
    await server.start()
    stack.push_async_callback(server.stop, 1.0)
    return f"{address.rpartition(':')[0]}:{port}"


async def _run(stop: asyncio.Event, lease: Lease, control: Control) -> None:
    def led(held: bool) -> None:
        if held:
            control.wake_all()

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
        control.watched(report.version_id).gateways.take(report)
        control.in_use(report.version_id)

    async def woken(message: Msg) -> None:
        control.asked(message.subject.rpartition(".")[2], parse(message.headers or {}))

    await client.subscribe(compute.DEMAND_SUBJECTS, cb=reported)
    await client.subscribe(compute.WAKE_SUBJECTS, cb=woken)
    await client.flush(timeout=5)


async def _ensure_streams(jetstream: JetStream, replicas: int) -> None:
    for config in (
        compute.work_stream_config(compute.CREATE_STREAM, compute.CREATE_SUBJECTS, replicas),
        compute.work_stream_config(compute.TERMINATE_STREAM, compute.TERMINATE_SUBJECTS, replicas),
        compute.event_stream_config(replicas),
    ):
        await jetstream.create_stream(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse_arguments(arguments)
    configure_logging(options.log_level, component="autoscaler")
    try:
        with service_telemetry("autoscaler", options.replica_id, options.metrics, {}) as telemetry:
            asyncio.run(serve(options, telemetry))
    except (BrokerError, AutoscalerError, TelemetryError) as error:
        print(f"nvcf-autoscaler: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
