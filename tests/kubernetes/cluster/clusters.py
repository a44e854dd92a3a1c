"""A cluster as tests see it, and how it is chosen: one that the environment names, else one of our own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kubernetes.cluster import programs
from tests.kubernetes.cluster.client import Client
from tests.kubernetes.cluster.control_plane import DEFAULTS, ControlPlane, Settings
from tests.kubernetes.cluster.errors import ClusterError

CONSENT = "NVCF_TEST_CLUSTER_CONSENT"
"""With the value "yes", tests may make and delete anything in the cluster of KUBECONFIG."""
TOOL_SECONDS = 120.0


@dataclass(frozen=True)
class Cluster:
    """A cluster that tests may use as its administrator."""

    kubeconfig: Path
    tools: dict[str, Path]
    control_plane: ControlPlane | None = None
    """The processes, unless somebody else runs the cluster."""

    @property
    def client(self) -> Client:
        """Return a new client."""
        return Client(self.kubeconfig)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl, and return its output. Raises `ClusterError` with its message if it fails."""
        return self._tool("kubectl", arguments, stdin)

    def helm(self, *arguments: str) -> str:
        """Run helm, and return its output. Raises `ClusterError` with its message if it fails."""
        return self._tool("helm", arguments, None)

    def _tool(self, name: str, arguments: tuple[str, ...], stdin: str | None) -> str:
        command = [str(self.tools[name]), *arguments]
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        done = subprocess.run(
            command,
            input=stdin,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TOOL_SECONDS,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"{name} {' '.join(arguments)}: {done.stderr[-4000:] or done.stdout[-4000:]}")
        return done.stdout


@contextlib.contextmanager
def api_server(settings: Settings = DEFAULTS, failed: Callable[[], bool] = bool) -> Iterator[Cluster]:
    """Run an API server with its controllers; or use the cluster that the environment names, with consent.

    Logs are kept if `failed()` says so at the end.
    """
    tools = programs.find(programs.TOOLS)
    named = os.environ.get("KUBECONFIG")
    if named and os.environ.get(CONSENT) == "yes":
        yield Cluster(Path(named.partition(os.pathsep)[0]), tools)
        return
    found = programs.find(programs.CONTROL_PLANE)
    with run_folder("api", failed) as folder:
        control = ControlPlane(found, folder, settings)
        try:
            control.start()
            yield Cluster(control.kubeconfig, tools, control)
        finally:
            control.stop()


@contextlib.contextmanager
def run_folder(kind: str, failed: Callable[[], bool] = bool) -> Iterator[Path]:
    """Make a folder with a short name for sockets and state. Its logs are kept after a failure, and named."""
    folder = Path(tempfile.mkdtemp(prefix=f"nvcf-{kind}-"))
    complete = False
    try:
        yield folder
        complete = not failed()
    finally:
        if not complete and (folder / "log").exists():
            kept = tempfile.mkdtemp(prefix=f"nvcf-{kind}-logs-")
            shutil.copytree(folder / "log", kept, symlinks=True, dirs_exist_ok=True)
            print(f"logs of the test cluster: {kept}", file=sys.stderr, flush=True)  # noqa: T201
        shutil.rmtree(folder)
