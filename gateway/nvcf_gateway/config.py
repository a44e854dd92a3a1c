"""Settings of one gateway process."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvcf_gateway.errors import SetupError
from nvcf_proto.launch import version_text
from nvcf_proto.streams import DEFAULT_ACK_WAIT_SECONDS, DEFAULT_PLACEMENT_TAG_KEY

KIB = 1024
MIB = 1024 * KIB

DEFAULT_IDLE_TIMEOUT = 330.0
"""Workers in Go keep idle connections for 300 s. They cannot repeat a response that was on its way when the
gateway closed the connection, so the worker has to close it first."""


LONGEST_DRAIN = 86400.0


@dataclass(frozen=True)
class GatewayConfig:
    """Settings: addresses are `host:port` (port 0: any free one), times are seconds, sizes are bytes."""

    http: tuple[str, int]
    grpc: tuple[str, int]
    nats: str
    signing_key: Path
    nats_credentials: Path | None = None
    nats_control_credentials: Path | None = None
    nats_system_credentials: Path | None = None
    nats_patience: float = 10.0
    callout_seed: Path | None = None
    bootstrap_keys: Path | None = None
    sealing_keys: Path | None = None
    region: str = "local"
    regions: tuple[str, ...] = ("local",)
    attach_url: str | None = None
    worker_grpc: str | None = None
    worker_nats: str | None = None
    ack_wait: float = DEFAULT_ACK_WAIT_SECONDS
    replicas: int = 1
    placement_tag_key: str = DEFAULT_PLACEMENT_TAG_KEY
    inline_reply_bytes: int = 256 * KIB
    spool_memory_bytes: int = 128 * KIB
    spool_directory: Path | None = None
    spool_max: int | None = None
    store_folder: Path | None = None
    exec_body_bytes: int = 8 * MIB
    public_url: str | None = None
    large_body_bytes: int = 16 * 1024 * MIB
    kept_body_bytes: int = 1024 * MIB
    idle_timeout: float = DEFAULT_IDLE_TIMEOUT
    assets_ttl: float = 30 * 24 * 3600.0
    results_ttl: float = 24 * 3600.0
    results_max_bytes: int | None = None
    data_max: int | None = None
    quotas: tuple[str, ...] = ()
    sidecar_images: tuple[str, ...] = ()
    sidecar_registry_login: Path | None = None
    sessions: tuple[str, int] | None = None
    session_proxy: tuple[str, int] | None = None
    session_proxy_url: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    wide_inbox: bool = False
    dashboard: bool = True
    metrics: str | None = None
    drain: float = 0.0
    grace: float = 0.0
    log_level: str = "INFO"

    @property
    def own_region_first(self) -> tuple[str, ...]:
        """All regions, in the order in which something is looked for."""
        return (self.region, *(region for region in self.regions if region != self.region))


def parse_address(text: str) -> tuple[str, int]:
    """Parse `host:port` or `[v6]:port`. Raises SetupError."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise SetupError(f"{text!r} is not an address: host:port expected, e.g. 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


def parse_arguments(arguments: Sequence[str] | None = None) -> GatewayConfig:
    """Read the command line. Raises SetupError for a wrong value."""
    values = vars(_parser().parse_args(arguments))
    own = values["region"]
    regions = tuple(part.strip() for part in values.pop("regions").split(",") if part.strip()) or (own,)
    for region in (own, *regions):
        if not region.replace("-", "").replace("_", "").isalnum():
            raise SetupError(f"region {region!r} may hold letters, digits, '-' and '_' only")
    if own not in regions:
        raise SetupError(f"--regions must contain the gateway's own region {own!r}")
    config = GatewayConfig(
        regions=regions,
        quotas=tuple(values.pop("quotas")),
        sidecar_images=tuple(values.pop("sidecar_images")),
        **values,
    )
    if (config.tls_cert is None) != (config.tls_key is None):
        raise SetupError("--tls-cert and --tls-key belong together")
    if config.ack_wait < 1:
        raise SetupError("--ack-wait must be at least 1 second")
    return config


def _optional_address(text: str) -> tuple[str, int] | None:
    return parse_address(text) if text else None


def _base_url(text: str) -> str | None:
    return text.rstrip("/") if text else None


def _pod_url(text: str) -> str | None:
    """Return a URL that leads to this very pod: `{pod-ip}` becomes POD_IP as names of pods have it."""
    return _base_url(text.replace("{pod-ip}", re.sub(r"[.:]", "-", os.environ.get("POD_IP", ""))))


def _mebibytes(text: str) -> int:
    try:
        return int(text) * MIB
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of MiB") from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= LONGEST_DRAIN:
        raise argparse.ArgumentTypeError(f"{text!r}: 0 to {LONGEST_DRAIN:g} seconds expected")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nvcf-gateway", description="Take callers' requests, queue them for workers and answer."
    )
    add = parser.add_argument
    add("--version", action="version", version=version_text(parser.prog))
    add("--http", type=parse_address, default="127.0.0.1:8080", metavar="HOST:PORT",
        help="listen here for callers and for request-attach")  # fmt: skip
    add("--grpc", type=parse_address, default="127.0.0.1:9090", metavar="HOST:PORT",
        help="listen here for workers (gRPC)")  # fmt: skip
    add("--nats", default="nats://127.0.0.1:4222", metavar="URL",
        help="URL of the broker; several, separated by commas")  # fmt: skip
    add("--nats-credentials", type=Path, metavar="FILE",
        help="file with the line user:password for the broker")  # fmt: skip
    add("--nats-control-credentials", type=Path, metavar="FILE",
        help="the same for the broker account of the control plane (default: one account)")  # fmt: skip
    add("--nats-system-credentials", type=Path, metavar="FILE",
        help="the same for the broker's system account, to end connections of workers at once")  # fmt: skip
    add("--nats-patience", type=_seconds, default=10.0, metavar="SECONDS",
        help="how long to wait for the broker at the start")  # fmt: skip
    add("--signing-key", type=Path, required=True, metavar="FILE",
        help="Ed25519 key (PEM), created if missing; or a folder: the newest signs, all verify")  # fmt: skip
    add("--sealing-keys", type=Path, metavar="FILE",
        help="key that seals secrets, or a folder: the last name seals, all open (default: no)")  # fmt: skip
    add("--callout-seed", type=Path, metavar="FILE",
        help="seed of the account key that signs answers to the broker's auth callout")  # fmt: skip
    add("--bootstrap-keys", type=Path, metavar="FILE",
        help="JSON list of API key records to create at the start")  # fmt: skip
    add("--region", default="local", help="region of this gateway")
    add("--regions", default="", help="all regions, separated by commas (default: the own one)")
    add("--attach-url", type=_pod_url, metavar="URL",
        help="URL at which workers reach this replica; {pod-ip} becomes POD_IP with dashes"
        " (default: the HTTP address)")  # fmt: skip
    add("--worker-grpc", metavar="HOST:PORT",
        help="gRPC address that workers of all clusters get (default: the gRPC address)")  # fmt: skip
    add("--worker-nats", metavar="URL",
        help="broker URLs that workers get, separated by commas (default: those of --nats)")  # fmt: skip
    add("--public-url", type=_base_url, metavar="URL",
        help="URL at which callers reach the gateway (default: the attach URL)")  # fmt: skip
    add("--idle-timeout", type=float, default=DEFAULT_IDLE_TIMEOUT, metavar="SECONDS",
        help="close a connection without a complete request head after this time")  # fmt: skip
    add("--ack-wait", type=float, default=DEFAULT_ACK_WAIT_SECONDS, metavar="SECONDS",
        help="deliver the requests of a worker again after this time without a sign of life")  # fmt: skip
    add("--replicas", type=int, default=1, metavar="N",
        help="copies of each stream and bucket in a broker cluster")  # fmt: skip
    add("--placement-tag-key", default=DEFAULT_PLACEMENT_TAG_KEY,
        help="tag of a broker node that names its region")  # fmt: skip
    add("--inline-reply-bytes", type=int, default=256 * KIB,
        help="largest response that is sent over the broker; 0: none")  # fmt: skip
    add("--spool-directory", type=Path, metavar="DIR",
        help="folder for request bodies in transit (default: the system's temporary folder)")  # fmt: skip
    add("--spool-max", type=_mebibytes, metavar="MIB",
        help="limit of all bodies in transit (default: a quarter of what is free there)")  # fmt: skip
    add("--store-folder", type=Path, metavar="DIR",
        help="store of a broker on this machine: wait for its disk before each promise")  # fmt: skip
    add("--sessions", type=_optional_address, metavar="HOST:PORT",
        help="listen here for gRPC and WebSocket sessions (default: no sessions)")  # fmt: skip
    add("--session-proxy", type=_optional_address, metavar="HOST:PORT",
        help="listen here for workers of sessions (default: with --sessions any free port)")  # fmt: skip
    add("--session-proxy-url", type=_pod_url, metavar="URL",
        help="URL at which workers reach that, with the path /v1/proxy (default: its address)")  # fmt: skip
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM) of all listeners")
    add("--tls-key", type=Path, metavar="FILE", help="private key (PEM) of --tls-cert")
    add("--wide-inbox", action="store_true",
        help="let workers use any inbox: only for third-party workers, see operate/security.md")  # fmt: skip
    add("--no-dashboard", action="store_false", dest="dashboard",
        help="do not serve the built-in page /dashboard/")  # fmt: skip
    add("--results-ttl", type=float, default=24 * 3600.0, metavar="SECONDS",
        help="how long results and idempotency keys are stored")  # fmt: skip
    add("--results-max-mib", type=_mebibytes, metavar="MIB", dest="results_max_bytes",
        help="space for stored results (default: a quarter of the data)")  # fmt: skip
    add("--data-max", type=_mebibytes, metavar="MIB",
        help="space for one copy of tenants' data (default: what the broker has, or 8192)")  # fmt: skip
    add("--quota", action="append", default=[], metavar="[ACCOUNT:]QUOTA=N", dest="quotas",
        help="limit of each account, or of one; repeatable, see operate/stores.md")  # fmt: skip
    add("--sidecar-image", action="append", default=[], metavar="NAME=IMAGE", dest="sidecar_images",
        help="image that agents run beside functions: utils, init, ess-agent, otel or"
        " byoo-otel-collector; repeatable")  # fmt: skip
    add("--sidecar-registry-login", type=Path, metavar="FILE",
        help="docker configuration (JSON) with the login for those images' registry")  # fmt: skip
    add("--drain", type=_seconds, default=0.0, metavar="SECONDS",
        help="after SIGTERM serve on for this time, while /health/ready answers 503")  # fmt: skip
    add("--grace", type=_seconds, default=0.0, metavar="SECONDS",
        help="and then for callers that still wait, up to this time")  # fmt: skip
    add("--metrics", metavar="HOST:PORT", help="serve metrics for Prometheus here (default: off)")
    add("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        help="least level of log records")  # fmt: skip
    return parser
