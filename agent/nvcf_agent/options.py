"""The agent's command line."""

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path

from nvcf_agent.backends.allowed import Allowed, allow_list
from nvcf_agent.backends.users import DEFAULT_RANGE
from nvcf_agent.capacity import Declared, Discovery, Nvml
from nvcf_agent.errors import AgentError
from nvcf_agent.icms.heartbeat import DEFAULT_SECONDS
from nvcf_agent.kubernetes import options as kubernetes_options
from nvcf_agent.kubernetes.options import DEFAULT_DATA
from nvcf_agent.state.actions import KEEP_FINISHED_SECONDS
from nvcf_agent.state.inventory import Limits
from nvcf_agent.state.machine_inventory import (
    DEFAULT_CPU_SLOTS,
    DEFAULT_TYPE,
    MachineInventory,
    parse_gpus,
    parse_instance_type,
)
from nvcf_agent.state.managed_instance import DEFAULT_GRACE_SECONDS
from nvcf_proto.icms.names import is_cluster_id
from nvcf_proto.launch import version_text

PROCESS, KUBERNETES = "process", "kubernetes"
POD_GRACE_SECONDS, POD_READY_SECONDS = 120.0, 7200.0
LONGEST_HEARTBEAT_SECONDS = 3600
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Names of processors in Kubernetes, by those of the operating system."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. argparse exits with code 2 for a wrong one."""
    parser = argparse.ArgumentParser(
        prog="nvcf-agent",
        description="Run the instances of one cluster, as processes of this machine or as pods.",
    )
    add = parser.add_argument
    add("--version", action="version", version=version_text(parser.prog))
    text = f"what instances are. With {KUBERNETES}, an NVCFBackend says what its options leave out"
    add("--backend", choices=[PROCESS, KUBERNETES], default=PROCESS, help=text)
    add("--icms", metavar="URL", help="the control plane's HTTP address, that of a gateway")
    add("--nats", metavar="URL", help="the broker, nats://HOST:PORT")
    add("--cluster-id", metavar="ID", type=_cluster_id, help="id of the registered cluster")
    identity = parser.add_mutually_exclusive_group(required=True)
    text = "file with the cluster's key, as its registration gave it"
    identity.add_argument("--key-file", type=Path, metavar="FILE", help=text)
    text = "file with a projected service account token, instead of a key"
    identity.add_argument("--token-file", type=Path, metavar="FILE", help=text)
    text = f"folder for requests, instances and logs [default with {KUBERNETES}: {DEFAULT_DATA}]"
    add("--data", type=Path, metavar="DIR", help=text)
    text = (
        f"default time to finish requests between SIGTERM and SIGKILL [default: {DEFAULT_GRACE_SECONDS:g}, "
    )
    text += f"with {KUBERNETES} {POD_GRACE_SECONDS:g}]"
    add("--grace", type=float, metavar="SECONDS", help=text)
    add(
        "--heartbeat",
        type=_seconds,
        default=DEFAULT_SECONDS,
        metavar="SECONDS",
        help="time between heartbeats",
    )
    text = "how long an ended instance is known, so that a late copy of its order makes nothing"
    add("--keep-finished", type=float, default=KEEP_FINISHED_SECONDS, metavar="SECONDS", help=text)
    add("--metrics", metavar="HOST:PORT", help="serve metrics for Prometheus here [default: off]")
    text = "instances serve metrics on 127.0.0.1; DIR/metrics/instances.json lists them"
    add("--worker-metrics", action="store_true", help=text)
    text = "instances get this process' OTEL_ variables, including credentials in them"
    add("--worker-telemetry", action="store_true", help=text)
    text = "secrets of telemetry endpoints, one folder per account [default: telemetry-secrets in --data]"
    add("--telemetry-secrets", type=Path, metavar="DIR", help=text)
    text = "an OpenTelemetry Collector (contrib), run beside each instance whose telemetry needs one; "
    text += "without it only its configuration is written"
    add("--collector", type=Path, metavar="PROGRAM", help=text)
    text = "least level of log records"
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"], help=text)
    add = parser.add_argument_group("the cluster").add_argument
    text = "attribute that a deployment can require"
    add("--attribute", action="append", default=[], metavar="NAME=VALUE", help=text)
    text = "GPUs of one kind; instances see theirs by CUDA_VISIBLE_DEVICES"
    add("--gpu", action="append", default=[], metavar="NAME=COUNT", help=text)
    text = "where GPUs come from: `declared` by --gpu, or found by `nvml`, NVIDIA's library"
    add("--gpus", choices=["declared", "nvml"], default="declared", help=text)
    text = f"largest number of instances without a GPU [default: {DEFAULT_CPU_SLOTS}, with {KUBERNETES} 0]"
    add("--cpu-slots", type=int, metavar="COUNT", help=text)
    text = f"an instance type and the limits of its instances [default: {DEFAULT_TYPE}, without limits]"
    form = "NAME[,memory=SIZE][,cpus=NUMBER]"
    add("--instance-type", action="append", default=[], metavar=form, help=text)
    add("--cgroup", type=Path, metavar="DIR", help="control group (version 2) for limited instances")
    add = parser.add_argument_group("what functions may do").add_argument
    text = "a Python that functions may use beside the agent's own and those in allowed folders"
    add("--allow-python", action="append", default=[], type=Path, metavar="PROGRAM", help=text)
    text = "a folder whose files functions may run and work in [default: the home folder without hidden "
    text += "folders, the folder of the start, and the one for temporary files]"
    add("--allow-folder", action="append", default=[], type=Path, metavar="DIR", help=text)
    text = "a folder that functions never see, beside --data"
    add("--private-folder", action="append", default=[], type=Path, metavar="DIR", help=text)
    text = "numbers of the users under which instances run where the agent is root, one for each account "
    text += f"[default: {DEFAULT_RANGE.first}-{DEFAULT_RANGE.last}]; none: the agent's user"
    add("--instance-uid-range", metavar="FIRST-LAST", help=text)
    add = parser.add_argument_group("limits").add_argument
    text = f"longest start of an instance [default: 1800, with {KUBERNETES} 7200]"
    add("--max-ready-seconds", type=float, metavar="SECONDS", help=text)
    add("--time-scale", type=_seconds, default=1.0, help=argparse.SUPPRESS)
    kubernetes_options.add_arguments(parser)
    return _with_defaults(parser, parser.parse_args(arguments))


def _with_defaults(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """Return the options with what depends on the backend."""
    on_kubernetes = options.backend == KUBERNETES
    needed = ("icms", "nats", "cluster_id", "data")
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(options, name) is None]
    if missing and not on_kubernetes:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    if options.data is None:
        options.data = DEFAULT_DATA
    if options.grace is None:
        options.grace = POD_GRACE_SECONDS if on_kubernetes else DEFAULT_GRACE_SECONDS
    if options.cpu_slots is None:
        options.cpu_slots = 0 if on_kubernetes else DEFAULT_CPU_SLOTS
    return options


def _cluster_id(text: str) -> str:
    if not is_cluster_id(text):
        raise argparse.ArgumentTypeError(f"{text[:64]!r}: letters, digits, '_' and '-' expected")
    return text


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= LONGEST_HEARTBEAT_SECONDS:
        raise argparse.ArgumentTypeError(f"{text}: more than 0, at most {LONGEST_HEARTBEAT_SECONDS} expected")
    return value


def attributes(options: argparse.Namespace) -> dict[str, str]:
    """Return the cluster's attributes. Raises `AgentError`."""
    found = {}
    for text in options.attribute:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise AgentError(f"--attribute {text}: NAME=VALUE expected")
        found[name] = value
    return found


def allowed(options: argparse.Namespace) -> Allowed:
    """Return what functions may name. Raises `AgentError`."""
    private = (options.data, *options.private_folder)
    return allow_list(options.allow_python, options.allow_folder, private)


def discovery(options: argparse.Namespace) -> Discovery:
    """Return how the cluster's inventory is found. Raises `AgentError`."""
    declared = inventory(options)
    if options.gpus == "nvml":
        if declared.gpus:
            raise AgentError("--gpus nvml: the GPUs are found; leave --gpu out")
        return Nvml(declared)
    return Declared(declared)


def inventory(options: argparse.Namespace) -> MachineInventory:
    """Return the cluster's inventory. Raises `AgentError`."""
    if options.cpu_slots < 0:
        raise AgentError(f"--cpu-slots {options.cpu_slots}: 0 or more expected")
    gpus = tuple(parse_gpus(text) for text in options.gpu)
    types = tuple(parse_instance_type(text) for text in options.instance_type)
    names = [name for name, _ in types]
    if len(set(names)) < len(names):
        raise AgentError("--instance-type: a name is given twice")
    machine = platform.machine().lower()
    return MachineInventory(
        options.cpu_slots,
        gpus,
        types or ((DEFAULT_TYPE, Limits()),),
        cpu_arch=_ARCHITECTURES.get(machine, machine) or None,
        os=platform.system().lower() or None,
    )
