"""A relay to the API server that can be frozen: connections stay open, and nothing passes any more."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.kubernetes.cluster.clusters import Cluster


class FrozenRelay:
    """One process, listening on a port of its own. Several may serve the port one after the other.

    `kubeconfig` is the cluster's, by way of the relay.
    """

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        server = cluster.client.server
        address = urlsplit(server)
        self._target = (str(address.hostname), str(address.port or 443))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.set_inheritable(True)
        port = self._listening.getsockname()[1]
        self.kubeconfig = folder / f"relay-{port}.kubeconfig"
        text = cluster.kubeconfig.read_text()
        self.kubeconfig.write_text(text.replace(server, f"https://127.0.0.1:{port}"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        """Start a process that takes new connections."""
        number = self._listening.fileno()
        command = [sys.executable, "-m", "tests.kubernetes.cluster.relay", str(number), *self._target]
        self._processes.append(subprocess.Popen(command, pass_fds=[number]))

    def freeze(self) -> None:
        """Let nothing pass through the connections that are open."""
        os.kill(self._processes[-1].pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        os.kill(self._processes[-1].pid, signal.SIGCONT)

    def end(self) -> None:
        """End all processes, and with them their connections."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    def close(self) -> None:
        """End all processes, and give the port back."""
        self.end()
        self._listening.close()
