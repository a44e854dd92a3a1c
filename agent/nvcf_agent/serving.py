"""What agents of all backends do alike: their connection to the broker, and the line that they are ready."""

import contextlib
import json
import logging
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

from nvcf_agent.control_plane import Connect, ControlPlane
from nvcf_agent.errors import IdentityError
from nvcf_agent.icms.identity import Identity
from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_otel.service import metrics_host, observed
from nvcf_otel.setup import Telemetry
from nvcf_proto.icms.names import agent_connection_name, agent_inbox_prefix, encode_agent_token

_log = logging.getLogger(__name__)


def connector(url: str, cluster_id: str, identity: Identity, telemetry: Telemetry) -> Connect:
    """Return what opens a connection to the broker."""

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[BrokerClient]:
        client = await connect_broker(
            url,
            name=agent_connection_name(cluster_id),
            inbox_prefix=agent_inbox_prefix(cluster_id),
            token=lambda: _broker_token(identity),
        )
        try:
            async with observed(telemetry, client):
                yield client
        finally:
            await client.close()

    return connect


def _broker_token(identity: Identity) -> str:
    """Return what the agent sends when it connects to the broker."""
    try:
        return encode_agent_token(identity.read(), own_inbox=True)
    except IdentityError as error:
        # The broker refuses this one; the next attempt reads the file again.
        _log.warning("%s", error)
        return ""


@dataclass
class Ready:
    """Writes the line that reports readiness to standard output, once."""

    control_plane: ControlPlane
    telemetry: Telemetry
    metrics: str | None
    told: bool = False

    def tell(self) -> None:
        """Write the line."""
        if self.told:
            return
        self.told = True
        line = {"event": "ready", "cluster": self.control_plane.cluster_id}
        if self.control_plane.cluster_name is not None:
            line["name"] = self.control_plane.cluster_name
        metrics = metrics_host(self.telemetry, self.metrics)
        sys.stdout.write(json.dumps(line if metrics is None else {**line, "metrics": metrics}) + "\n")
        sys.stdout.flush()
