"""A real nats-server with JetStream on a free loopback port, for tests that need no auth callout."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from nvcf_broker.process import free_port

START_TIMEOUT = 60.0


class NatsServer:
    """A server with file storage in `directory`. `start` after `kill` uses the same port and data."""

    def __init__(self, directory: Path, token: str | None = None) -> None:
        self.directory = directory
        self.token = token
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """URL without credentials."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """URL with the token, if any."""
        return self.address if self.token is None else f"nats://{self.token}@127.0.0.1:{self.port}"

    def config(self) -> dict[str, object]:
        """Return the server's configuration."""
        config: dict[str, object] = {
            "listen": f"127.0.0.1:{self.port}",
            "max_payload": 8 * 1024 * 1024,
            "jetstream": {"store_dir": str(self.directory / "store")},
        }
        if self.token is not None:
            config["authorization"] = {"token": self.token}
        return config

    def start(self) -> None:
        """Start and wait until it accepts connections."""
        config = self.config()
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "nats.conf"
        path.write_text(json.dumps(config))
        with (self.directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).parent / "nats-server"), "-c", str(path)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "nats.log").read_text())
            time.sleep(0.02)

    def _accepts(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, for example SIGUSR2 for lame duck mode."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
