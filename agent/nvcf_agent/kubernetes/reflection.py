"""What the agent says of itself in the status of its NVCFBackend."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import NVCF_BACKEND
from nvcf_agent.kubernetes.crds.nvcf_backend import AgentStatus, BackendStatus, GpuCount
from nvcf_agent.kubernetes.request_objects import timestamp
from nvcf_proto.icms.reports import GpuUsage

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
# Without a change, the status says this often that the agent lives.
_LOOKS = 30


@dataclass
class Reflection:
    """Keeps the status of an NVCFBackend. `usage` returns what the cluster has and what is free."""

    api: Api
    name: str
    namespace: str
    version: str
    kubernetes_version: str
    usage: Callable[[], Mapping[str, GpuUsage]]
    wall: Callable[[], float] = time.time
    _since: str | None = None

    def status(self, usage: Mapping[str, GpuUsage]) -> BackendStatus:
        """Return what there is to say now."""
        now = timestamp(self.wall())
        self._since = self._since or now
        return BackendStatus(
            version=self.version,
            agent_status=AgentStatus.HEALTHY,
            # The API server makes null of a map from which the last member goes, and refuses that.
            gpu_usage={
                name: GpuCount(capacity=each.capacity, allocated=each.allocated, available=each.available)
                for name, each in usage.items()
            }
            or None,
            kubernetes_version=self.kubernetes_version,
            last_updated=now,
            last_updated_agent_status=self._since,
        )

    async def run(self) -> None:
        """Write the status when it changes and now and then, until cancelled."""
        metadata = {"name": self.name, "namespace": self.namespace}
        while True:
            usage = dict(self.usage())
            body = {"metadata": metadata, "status": self.status(usage).to_dict()}
            try:
                await self.api.apply(NVCF_BACKEND, body, part="status")
            except ApiError as error:
                _log.info("the status of NVCFBackend %s is not written: %s", self.name, error)
            for _ in range(_LOOKS):
                await asyncio.sleep(_LOOK_SECONDS)
                if dict(self.usage()) != usage:
                    break
