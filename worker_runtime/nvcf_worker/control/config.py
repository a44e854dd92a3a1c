"""Read the worker's settings from the environment (protocol.md, section 5.1)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nvcf_proto import environment as env
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id
from nvcf_proto.settings import HEALTH_PORT
from nvcf_worker.control.tls import ROOT_CA_FILE, client_context
from nvcf_worker.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
GRPC_TLS = "NVCF_GRPC_TLS"
"""[ext] `true` or `false`: TLS to the WorkerService. Default: TLS, but not for `http://` and loopback."""

DEFAULT_GRACE_SECONDS = 25

_REQUIRED = (
    env.NVCF_WORKER_TOKEN,
    env.NVCF_FQDN_GRPC,
    env.NVCF_FQDN_NATS,
    env.INSTANCE_ID,
    env.FUNCTION_ID,
    env.FUNCTION_VERSION_ID,
)


WITHOUT_PROXY = (("grpc.enable_http_proxy", 0),)
"""Options of gRPC channels: http_proxy and its like are for the function's own calls."""


@dataclass(frozen=True)
class GrpcEndpoint:
    """Address of the WorkerService (`host:port`), and whether it uses TLS."""

    target: str
    tls: bool


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Settings of one worker process. With `health_port` 0 there is no health server."""

    worker_token: str
    grpc: GrpcEndpoint
    nats_servers: tuple[str, ...]
    instance_id: str
    function_id: str
    version_id: str
    shared_dir: Path
    function_name: str = ""
    nca_id: str = ""
    nkey_seed: str | None = None
    concurrency: int = 1
    health_port: int = 0
    instance_type: str = ""
    environment: str = ""
    backend: str = ""
    zone: str = ""
    session_port: int | None = None
    session_host: str = LOOPBACK
    asset_dir: Path | None = None
    response_dir: Path | None = None
    open_files: bool = False
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    compatibility_disabled: bool = False
    cache_token: bool = True

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str],
        *,
        concurrency: int | None = None,
        session_port: int | None = None,
        session_host: str | None = None,
    ) -> WorkerConfig:
        """Read the settings. Raises ConfigurationError that names the wrong variable."""
        missing = [name for name in _REQUIRED if not environ.get(name)]
        if missing:
            raise ConfigurationError(
                f"environment variables not set: {', '.join(missing)}. The platform sets them for an "
                "instance; to try a function on this machine use `nvcf deploy`."
            )
        if environ.get(ROOT_CA_FILE):
            # An invalid file is reported now, not with the first connection.
            client_context(environ)
        return cls(
            worker_token=environ[env.NVCF_WORKER_TOKEN],
            grpc=grpc_endpoint(environ[env.NVCF_FQDN_GRPC], environ.get(GRPC_TLS)),
            nats_servers=nats_servers(environ[env.NVCF_FQDN_NATS]),
            instance_id=_instance_id(environ[env.INSTANCE_ID]),
            function_id=_uuid(environ, env.FUNCTION_ID),
            version_id=_uuid(environ, env.FUNCTION_VERSION_ID),
            shared_dir=Path(environ.get(env.SHARED_CONFIG_DIR) or env.DEFAULT_SHARED_CONFIG_DIR),
            function_name=environ.get(env.FUNCTION_NAME, ""),
            nca_id=environ.get(env.NCA_ID, ""),
            nkey_seed=environ.get(env.NKEY_SEED) or None,
            concurrency=_concurrency(environ, concurrency),
            health_port=_number(environ, env.HEALTH_PORT, HEALTH_PORT, 0, 65535),
            instance_type=environ.get(env.INSTANCE_TYPE, ""),
            environment=environ.get(env.ICMS_ENVIRONMENT, ""),
            backend=environ.get(env.CLOUD_PROVIDER, ""),
            zone=environ.get(env.ZONE_NAME, ""),
            asset_dir=_path(environ, env.BASE_ASSET_DIR),
            response_dir=_path(environ, env.BASE_RESPONSE_DIR),
            open_files=_flag(environ, env.NVCF_OPEN_FILES),
            grace_seconds=_number(environ, env.NVCF_GRACE_SECONDS, DEFAULT_GRACE_SECONDS, 0, 86_400),
            compatibility_disabled=_flag(environ, env.V3_BACKWARDS_COMPATIBILITY_DISABLED),
            session_port=session_port or _number(environ, env.INFERENCE_PORT, 0, 1, 65535) or None,
            session_host=session_host or server_host(environ),
        )


def server_host(environ: Mapping[str, str]) -> str:
    """Return the host of the function's own server: this machine, or the service of its Helm chart."""
    service = environ.get(env.HELM_CHART_INFERENCE_SERVICE_NAME)
    namespace = environ.get(env.HELM_CHART_NAMESPACE)
    return f"{service}.{namespace}.svc" if service and namespace else LOOPBACK


def _concurrency(environ: Mapping[str, str], argument: int | None) -> int:
    if argument is None:
        # NVIDIA's platform sets 0 for a version that has no setting of its own.
        return max(1, _number(environ, env.MAX_REQUEST_CONCURRENCY, 1, 0, 16_384))
    if not 1 <= argument <= 16_384:
        raise ConfigurationError(f"concurrency is {argument}; it must be 1 to 16384")
    return argument


def _number(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ConfigurationError(f"{name} is {text[:32]!r}; it must be a whole number from {low} to {high}")
    return int(text)


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    text = environ.get(name, "").strip()
    return Path(text) if text else None


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() in ("true", "1", "yes")


def _uuid(environ: Mapping[str, str], name: str) -> str:
    try:
        return parse_id(environ[name], name)
    except InvalidId as error:
        raise ConfigurationError(str(error)) from error


_INSTANCE_ID = re.compile(r"[A-Za-z0-9_:-]+(?:\.[A-Za-z0-9_:-]+)*")


def _instance_id(text: str) -> str:
    # The id is part of a broker subject and of the name of a folder.
    if len(text) > 128 or not _INSTANCE_ID.fullmatch(text):
        raise ConfigurationError(
            f"{env.INSTANCE_ID} is {text[:64]!r}; it must be letters, digits, '-', '_', ':' and single dots "
            "between them, 128 at most"
        )
    return text


def grpc_endpoint(address: str, tls: str | None = None) -> GrpcEndpoint:
    """Parse `host:port`, `http://host:port` or `https://host[:port]`.

    Without a scheme, loopback hosts use cleartext and all others TLS; `tls` ("true" or "false") overrides it.
    Raises ConfigurationError.
    """
    text = address.strip()
    parts = urlsplit(text if "://" in text else f"//{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{env.NVCF_FQDN_GRPC} is {address!r}: {error}") from error
    if not host or parts.scheme not in ("", "http", "https", "grpc", "grpcs"):
        raise ConfigurationError(f"{env.NVCF_FQDN_GRPC} is {address!r}; expected host:port or a http(s) URL")
    secure = parts.scheme in ("https", "grpcs") or not (parts.scheme or _is_loopback(host))
    if tls is not None and tls.strip():
        if tls.strip().lower() not in ("true", "false"):
            raise ConfigurationError(f"{GRPC_TLS} is {tls!r}; it must be true or false")
        secure = tls.strip().lower() == "true"
    shown = f"[{host}]" if ":" in host else host
    return GrpcEndpoint(f"{shown}:{port or (443 if secure else 80)}", secure)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def nats_servers(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of NATS URLs; `host[:port]` means `nats://`. Raises ConfigurationError."""
    servers = [part.strip() for part in text.split(",") if part.strip()]
    for server in servers:
        scheme = server.split("://", 1)[0] if "://" in server else "nats"
        if scheme not in ("nats", "tls", "ws", "wss"):
            raise ConfigurationError(
                f"{env.NVCF_FQDN_NATS} has the URL {server!r}; expected nats:// or tls://"
            )
    if not servers:
        raise ConfigurationError(f"{env.NVCF_FQDN_NATS} names no server")
    return tuple(server if "://" in server else f"nats://{server}" for server in servers)
