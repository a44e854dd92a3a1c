"""The data folder of a local platform: its files, the lock of `nvcf up`, and its reports to other commands.

`state.json` exists while the platform runs and is ready:

    {"pid", "url", "grpc", "nats", "keyFile", "data", "startedAt",
     "children": {NAME: {"pid", "state": "starting" | "running" | "waiting", "restarts"}},
     "metrics": {NAME: "HOST:PORT"}, "sessions": "HOST:PORT" or null,
     "broker": program, version and origin of the platform's own broker, or null}
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec

from nvcf_broker.files import private_directory, write_private
from nvcf_cli.errors import CliError

HOME_VARIABLE = "NVCF_HOME"
"""Data folder of the local platform. Default: ~/.nvcf."""
_LOCK_ATTEMPTS = 10


def default_data_folder() -> Path:
    """Return `$NVCF_HOME`, or `~/.nvcf`."""
    configured = os.environ.get(HOME_VARIABLE)
    return Path(configured).expanduser().absolute() if configured else Path.home() / ".nvcf"


@dataclass(frozen=True)
class Installation:
    """Where a local platform keeps its files. Everything in it is its owner's alone."""

    data: Path

    @property
    def state(self) -> Path:
        """What runs, and where it listens."""
        return self.data / "state.json"

    @property
    def lock(self) -> Path:
        """Held by `nvcf up` while it runs."""
        return self.data / "up.lock"

    @property
    def admin_key(self) -> Path:
        """API key of the commands."""
        return self.data / "admin.key"

    @property
    def clusters(self) -> Path:
        """Ids of the clusters that `nvcf up` has registered."""
        return self.data / "clusters.json"

    @property
    def bootstrap_keys(self) -> Path:
        """Records of the API keys, for the gateway."""
        return self.data / "bootstrap-keys.json"

    @property
    def signing_key(self) -> Path:
        """Key that signs worker tokens."""
        return self.data / "signing-key.pem"

    @property
    def sealing_keys(self) -> Path:
        """Folder of the keys that seal secrets: `*.key`, the last by name seals."""
        return self.data / "sealing-keys"

    @property
    def prometheus(self) -> Path:
        """Configuration with which Prometheus collects everything."""
        return self.data / "prometheus.yml"

    @property
    def targets(self) -> Path:
        """Where the platform's own processes serve their metrics; those of instances lie beside it."""
        return self.data / "metrics" / "platform.json"

    @property
    def broker(self) -> Path:
        """Folder of the broker."""
        return self.data / "broker"

    @property
    def telemetry_secrets(self) -> Path:
        """Secret files of telemetry endpoints, for the agents."""
        return self.data / "telemetry-secrets"

    def log(self, child: str) -> Path:
        """Log file of one of the platform's own processes."""
        return self.data / f"{child}.log"

    def cluster(self, cluster: str) -> Path:
        """Return the data folder of a cluster's agent; that of the only cluster is the platform's own."""
        return self.data if cluster == "local" else self.data / "clusters" / cluster

    @property
    def worker_port(self) -> Path:
        """Port of the gateway that instances were given; they keep it over restarts of the platform."""
        return self.data / "worker-port"

    def agent_key(self, cluster: str) -> Path:
        """Key of a cluster's agent."""
        return self.cluster(cluster) / "agent.key"

    def function_logs(self, name: str) -> list[Path]:
        """Return the folders with the logs of a function's instances, one for each cluster."""
        folders = [self.data, *sorted((self.data / "clusters").glob("*"))]
        return [folder / "logs" / name for folder in folders]


class ChildState(msgspec.Struct, frozen=True):
    """One of the platform's processes."""

    pid: int | None = None
    state: str = "starting"
    restarts: int = 0


class PlatformState(msgspec.Struct, frozen=True, rename="camel"):
    """What a running `nvcf up` reports to other commands."""

    pid: int
    url: str
    grpc: str
    nats: str
    key_file: str
    data: str
    started_at: float
    children: dict[str, ChildState] = msgspec.field(default_factory=dict)
    metrics: dict[str, str] = msgspec.field(default_factory=dict)
    sessions: str | None = None
    broker: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON members, as in the module's description."""
        members: dict[str, Any] = msgspec.to_builtins(self)
        return members


def write_state(installation: Installation, state: PlatformState) -> None:
    """Replace the state file in one step."""
    write_private(installation.state, json.dumps(state.to_dict(), indent=1) + "\n")


def read_state(installation: Installation) -> PlatformState | None:
    """Return what the running platform reports; None if none runs (a stale file does not count)."""
    if running_pid(installation) is None:
        return None
    try:
        return msgspec.json.decode(installation.state.read_bytes(), type=PlatformState)
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def only_platform(installation: Installation) -> Iterator[None]:
    """Hold the data folder for this process. Raises `CliError` if another one has it, or it is unusable."""
    try:
        private_directory(installation.data)
        lock = installation.lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise CliError(f"cannot use the data folder {installation.data}: {error.strerror}") from error
    with lock:
        if not _take(lock):
            lock.seek(0)
            raise CliError(
                f"nvcf is already up on {installation.data} (process {lock.read().strip() or '?'}): "
                "end it with nvcf down, or use another folder with --data"
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            installation.state.unlink(missing_ok=True)


def _take(lock: TextIO) -> bool:
    for _ in range(_LOCK_ATTEMPTS):
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        # Another command may just be looking whether somebody holds it.
        time.sleep(0.02)
    return False


def running_pid(installation: Installation) -> int | None:
    """Return the process id of the `nvcf up` that holds the data folder, or None."""
    try:
        with installation.lock.open("r+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                text = lock.read().strip()
                return int(text) if text.isdigit() else None
            return None
    except OSError:
        return None
