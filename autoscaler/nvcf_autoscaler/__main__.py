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
from pathlib import Path

import grpc
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_autoscaler.controller.actuation import Actuator
from nvcf_autoscaler.controller.cache import Cache
from nvcf_autoscaler.controller.history import ScalingHistory
from nvcf_autoscaler.controller.lease import Lease, LeaseRecord
from nvcf_autoscaler.controller.loop import ControlLoop
from nvcf_autoscaler.controller.order_sender import OrderSender
from nvcf_autoscaler.controller.reconcile import Reconciler
from nvcf_autoscaler.controller.recorder import Recorder
from nvcf_autoscaler.controller.service import AutoscalerService
from nvcf_autoscaler.controller.tasks import TaskController
from nvcf_autoscaler.errors import AutoscalerError
from nvcf_autoscaler.placement.fairness import TIME_SLICE
from nvcf_autoscaler.placement.place import LOST_AFTER
from nvcf_autoscaler.telemetry.snapshot import Snapshots
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
from nvcf_proto.compute import AUTOSCALER_LEASE, LEASES_BUCKET, DemandReport
from nvcf_proto.errors import ContractError
from nvcf_proto.ids import new_id
from nvcf_proto.launch import version_text
from nvcf_proto.models import API_KEYS_BUCKET, ApiKey
from nvcf_proto.pb import nvcf_pb2_grpc
from nvcf_proto.tasks import SILENT_AFTER_SECONDS

_log = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of one replica."""
    parser = argparse.ArgumentParser(
        prog="nvcf-autoscaler", description="Keep as many instances as the demand needs, and say why."
    )
    add = parser.add_argument
    add("--version", action="version", version=version_text(parser.prog))
    add("--nats", default="nats://127.0.0.1:4222", metavar="URL",
        help="URL of the broker; several, separated by commas")  # fmt: skip
    add("--nats-credentials", type=Path, metavar="FILE",
        help="file with the line user:password for the broker")  # fmt: skip
    add("--nats-control-credentials", type=Path, metavar="FILE",
        help="the same for the broker account of the control plane (default: one account)")  # fmt: skip
    add("--nats-patience", type=float, default=10.0, metavar="SECONDS",
        help="how long to wait for the broker at the start")  # fmt: skip
    add("--replica-id", default="", metavar="NAME", help="unique name of this replica (default: random)")
    add("--regions", type=_regions, default="local", help="regions whose queues count, separated by commas")
    add("--replicas", type=int, default=1, metavar="N",
        help="copies of streams and buckets in a broker cluster")  # fmt: skip
    text = "replace the instances of a cluster that sends no heartbeat for this time"
    add("--lost-after", type=float, default=LOST_AFTER, metavar="SECONDS", help=text)
    text = "silence of a worker after which its task is ERRORED; its heartbeats come every 60 s"
    add("--task-silent-after", type=float, default=SILENT_AFTER_SECONDS, metavar="SECONDS", help=text)
    text = "least time that a version keeps its only instance while GPUs are short and others have none"
    add("--turn", type=float, default=TIME_SLICE, metavar="SECONDS", help=text)
    add("--grpc", metavar="HOST:PORT",
        help="also serve nvcf.Autoscaler (gRPC) here, without TLS (default: off)")  # fmt: skip
    add("--metrics", metavar="HOST:PORT", help="serve metrics for Prometheus here (default: off)")
    add("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        help="least level of log records")  # fmt: skip
    options = parser.parse_args(arguments)
    options.replica_id = options.replica_id or new_id()
    return options


def _regions(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) or ("local",)


async def serve(options: argparse.Namespace, telemetry: Telemetry) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        client = await connect_broker(
            options.nats,
            options.nats_credentials,
            name=f"autoscaler_{options.replica_id}",
            timeout=options.nats_patience,
        )
        stack.push_async_callback(client.close)
        await stack.enter_async_context(observed(telemetry, client))
        queues = ReplyInbox(client)
        await queues.start()
        if options.nats_control_credentials is not None:
            client = await connect_broker(
                options.nats,
                options.nats_control_credentials,
                name=f"autoscaler_{options.replica_id}_control",
            )
            stack.push_async_callback(client.close)
        requests = ReplyInbox(client)
        await requests.start()
        await JetStream(requests).ensure_stream(compute.event_stream_config(options.replicas))
        leases = KvMirror(
            client, LEASES_BUCKET, LeaseRecord.from_json, LeaseRecord.to_json, replicas=options.replicas
        )
        await stack.enter_async_context(leases)
        await leases.ready()
        lease = Lease(leases, AUTOSCALER_LEASE, options.replica_id, time.monotonic)
        snapshots = Snapshots(lambda: lease.held)
        snapshots.register()
        recorder = Recorder(snapshots)
        # The cache is read before the control loop runs, but its callbacks need the loop.
        cache = Cache(
            client,
            lambda version_id: control.wake(version_id),
            lambda: control.wake_waiting_for_capacity(),
            options.replicas,
            options.lost_after,
            lambda: task_controller.wake(),
        )
        orders = OrderSender(requests)
        actuator = Actuator(client, requests, cache, orders)
        history = ScalingHistory(requests, options.replicas)
        reconciler = Reconciler(
            cache,
            queues,
            actuator,
            lease,
            options.regions,
            recorder,
            history,
            options.turn,
        )

        def clock_set(now: float) -> None:
            cache.clock_set(now)
            history.begin_anew()
            lease.begin_anew()

        control = ControlLoop(reconciler, cache.version_ids, lambda: lease.held, recorder.gone, clock_set)
        task_controller = TaskController(
            cache,
            actuator,
            lease,
            reconciler.acting,
            control.lacking_capacity,
            options.task_silent_after,
        )
        await cache.start(stack)
        await _listen(client, control)
        ready = {"event": "ready", "replicaId": options.replica_id}
        if options.grpc is not None:
            ready["grpc"] = await _serve_grpc(stack, options, client, cache)
        metrics = metrics_host(telemetry, options.metrics)
        if metrics is not None:
            ready["metrics"] = metrics
        print(json.dumps(ready), flush=True)  # noqa: T201
        await _run(stop, lease, control, orders, task_controller, history)
        await lease.release()
        await history.finish()


async def _serve_grpc(
    stack: AsyncExitStack, options: argparse.Namespace, client: BrokerClient, cache: Cache
) -> str:
    address: str = options.grpc
    keys = KvMirror(client, API_KEYS_BUCKET, ApiKey.from_json, ApiKey.to_json, replicas=options.replicas)
    await stack.enter_async_context(keys)
    await keys.ready()
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", 64 * 1024), ("grpc.so_reuseport", 0)]
    )
    nvcf_pb2_grpc.add_AutoscalerServicer_to_server(AutoscalerService(cache, cache.orders, keys), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise AutoscalerError(
            f"cannot listen on {address} (gRPC): choose another --grpc HOST:PORT"
        ) from error
    await server.start()
    stack.push_async_callback(server.stop, 1.0)
    return f"{address.rpartition(':')[0]}:{port}"


async def _run(
    stop: asyncio.Event,
    lease: Lease,
    control: ControlLoop,
    orders: OrderSender,
    tasks: TaskController,
    history: ScalingHistory,
) -> None:
    def leadership_changed(held: bool) -> None:
        history.begin_anew()
        if held:
            control.wake_all()
            tasks.wake()

    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(lease.keep(leadership_changed)),
            group.create_task(control.run()),
            group.create_task(tasks.run()),
            group.create_task(orders.run()),
            group.create_task(history.run()),
        ]
        await stop.wait()
        for task in running:
            task.cancel()


async def _listen(client: Client, control: ControlLoop) -> None:
    async def reported(message: Msg) -> None:
        try:
            report = DemandReport.from_json(message.data)
        except ContractError as error:
            _log.warning("demand report ignored: %s", error)
            return
        control.state_of(report.version_id).gateways.add(report)
        control.in_use(report.version_id)

    async def woken(message: Msg) -> None:
        control.cold_start(message.subject.rpartition(".")[2], parse(message.headers or {}))

    await client.subscribe(compute.DEMAND_SUBJECTS, cb=reported)
    await client.subscribe(compute.WAKE_SUBJECTS, cb=woken)
    await client.flush(timeout=5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
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
