"""What a broker that serves other machines adds to its configuration: listeners, routes and TLS. Pure."""

import json
from dataclasses import dataclass
from pathlib import Path

CLIENT_PORT = 4222
ROUTE_PORT = 6222
MONITOR_PORT = 8222
ROUTE_USER = "route"


@dataclass(frozen=True)
class BrokerNetwork:
    """A broker that listens on every interface, alone or as a node of a cluster.

    `nodes` are the host names of all nodes, this one among them; one or none is no cluster. Nodes know each
    other by `password`. `certificate` and `key` (PEM) put the clients' port behind TLS. `pid_file` is for
    `nats-server --signal`.
    """

    nodes: tuple[str, ...] = ()
    password: str = ""
    certificate: Path | None = None
    key: Path | None = None
    pid_file: Path | None = None

    @property
    def size(self) -> int:
        """Return the number of nodes."""
        return max(1, len(self.nodes))

    def text(self) -> str:
        """Return the lines of the configuration."""
        quote = json.dumps
        # Clients are asked to go to another node before this one ends.
        lines = [f"http: {MONITOR_PORT}", 'lame_duck_grace_period: "5s"', 'lame_duck_duration: "30s"']
        if self.pid_file is not None:
            lines.append(f"pid_file: {quote(str(self.pid_file))}")
        if self.certificate is not None and self.key is not None:
            files = {"cert_file": str(self.certificate), "key_file": str(self.key)}
            lines.append(f"tls: {quote(files)}")
        if self.size > 1:
            login = {"user": ROUTE_USER, "password": self.password, "timeout": 5}
            cluster = {
                "name": "nvcf",
                "listen": f"0.0.0.0:{ROUTE_PORT}",
                "authorization": login,
                "routes": [f"nats://{ROUTE_USER}:{self.password}@{node}:{ROUTE_PORT}" for node in self.nodes],
                # Clients outside reach the nodes by other addresses than those that the nodes know.
                "no_advertise": True,
            }
            lines.append(f"cluster: {quote(cluster)}")
        return "\n".join(lines) + "\n"
