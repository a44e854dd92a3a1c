"""The agent's command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nvcf_agent.errors import AgentError
from nvcf_agent.state.actions import KEEP_FINISHED_SECONDS
from nvcf_agent.state.inventory import (
    DEFAULT_CPU_SLOTS,
    DEFAULT_TYPE,
    Inventory,
    Limits,
    parse_gpus,
    parse_instance_type,
)
from nvcf_agent.state.managed_instance import DEFAULT_GRACE_SECONDS
from nvcf_proto.compute import subject_token


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. argparse exits with code 2 for a wrong one."""
    parser = argparse.ArgumentParser(
        prog="nvcf-agent",
        description="Run the instances of one cluster as processes of this machine.",
    )
    parser.add_argument("--nats", required=True, metavar="URL", help="the broker, nats://HOST:PORT")
    parser.add_argument(
        "--nats-credentials", type=Path, metavar="FILE", help="file with the line user:password for it"
    )
    parser.add_argument(
        "--gateway-http", required=True, metavar="URL", help="gateway that issues worker tokens"
    )
    parser.add_argument(
        "--worker-grpc", required=True, metavar="HOST:PORT", help="the gateway's gRPC address"
    )
    parser.add_argument("--worker-nats", required=True, metavar="URL", help="the broker as workers reach it")
    parser.add_argument(
        "--key-file", required=True, type=Path, metavar="FILE", help="file with an API key of the scope agent"
    )
    parser.add_argument(
        "--data", required=True, type=Path, metavar="DIR", help="folder for requests, instances and logs"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=DEFAULT_GRACE_SECONDS,
        metavar="SECONDS",
        help="default time to finish requests between SIGTERM and SIGKILL",
    )
    parser.add_argument(
        "--keep-finished",
        type=float,
        default=KEEP_FINISHED_SECONDS,
        metavar="SECONDS",
        help="how long the record of an ended instance stays",
    )
    parser.add_argument(
        "--metrics", metavar="HOST:PORT", help="serve metrics for Prometheus here [default: off]"
    )
    parser.add_argument(
        "--worker-metrics",
        action="store_true",
        help="instances serve metrics on 127.0.0.1; DIR/metrics/instances.json lists them",
    )
    parser.add_argument(
        "--worker-telemetry",
        action="store_true",
        help="instances get this process' OTEL_ variables, including credentials in them",
    )
    parser.add_argument(
        "--telemetry-secrets",
        type=Path,
        metavar="DIR",
        help="secrets of telemetry endpoints, one folder per account [default: telemetry-secrets in --data]",
    )
    parser.add_argument(
        "--collector",
        type=Path,
        metavar="PROGRAM",
        help="an OpenTelemetry Collector (contrib), run beside each instance whose telemetry needs one; "
        "without it only its configuration is written",
    )
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="least level of log records",
    )
    _add_cluster(parser)
    return parser.parse_args(arguments)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the cluster")
    group.add_argument("--cluster", default="local", metavar="ID", help="id of this cluster")
    group.add_argument("--region", default="local", metavar="NAME", help="region of this cluster")
    group.add_argument("--cluster-group", metavar="NAME", help="group of this cluster")
    group.add_argument(
        "--attribute",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="attribute that a deployment can require",
    )
    group.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="NAME=COUNT",
        help="GPUs of one kind; instances see theirs by CUDA_VISIBLE_DEVICES",
    )
    group.add_argument(
        "--cpu-slots", type=int, default=DEFAULT_CPU_SLOTS, help="largest number of instances without a GPU"
    )
    group.add_argument(
        "--instance-type",
        action="append",
        default=[],
        metavar="NAME[,memory=SIZE][,cpus=NUMBER]",
        help=f"an instance type and the limits of its instances [default: {DEFAULT_TYPE}, without limits]",
    )
    group.add_argument(
        "--cgroup", type=Path, metavar="DIR", help="control group (version 2) for limited instances"
    )
    group.add_argument(
        "--max-ready-seconds",
        type=float,
        metavar="SECONDS",
        help="longest start of an instance [default: 1800]",
    )


def cluster_id(options: argparse.Namespace) -> str:
    """Return the cluster's id. Raises `AgentError` if it cannot be part of a subject."""
    text = str(options.cluster)
    if subject_token(text) != text:
        raise AgentError(f"--cluster {text}: letters, digits, '_' and '-' only")
    return text


def attributes(options: argparse.Namespace) -> dict[str, str]:
    """Return the cluster's attributes. Raises `AgentError`."""
    found = {}
    for text in options.attribute:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise AgentError(f"--attribute {text}: NAME=VALUE expected")
        found[name] = value
    return found


def inventory(options: argparse.Namespace) -> Inventory:
    """Return the cluster's inventory. Raises `AgentError`."""
    if options.cpu_slots < 0:
        raise AgentError(f"--cpu-slots {options.cpu_slots}: 0 or more expected")
    gpus = tuple(parse_gpus(text) for text in options.gpu)
    types = tuple(parse_instance_type(text) for text in options.instance_type)
    names = [name for name, _ in types]
    if len(set(names)) < len(names):
        raise AgentError("--instance-type: a name is given twice")
    return Inventory(options.cpu_slots, gpus, types or ((DEFAULT_TYPE, Limits()),))
