"""Registers what the cluster has: at the start, on each change, and every hour."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nvcf_agent.errors import AgentError, ControlPlaneError
from nvcf_agent.icms.client import IcmsClient, agent_version
from nvcf_agent.state.inventory import Inventory
from nvcf_agent.timings import Timings, growing_pause
from nvcf_proto.errors import ContractError
from nvcf_proto.icms.reports import ClusterStatus, MaintenanceMode, Registration, RegistrationAnswer

_log = logging.getLogger(__name__)

# A replica that has not heard of the cluster yet may answer so, too.
_REFUSALS = frozenset((400, 401, 403, 404, 409, 410))
_CHECK = "check --cluster-id and the key or token, and that the cluster is registered (nvcf cluster list)"
_STATUS = {
    MaintenanceMode.CORDON: ClusterStatus.CORDON,
    MaintenanceMode.CORDON_AND_DRAIN: ClusterStatus.CORDON_AND_DRAIN,
}


def registration(
    inventory: Inventory,
    *,
    backend: str,
    heartbeat_seconds: float,
    attributes: dict[str, str],
    k8s_version: str | None = None,
    maintenance: MaintenanceMode = MaintenanceMode.NONE,
) -> Registration:
    """Return the body of a registration. Pure."""
    return Registration(
        status=_STATUS.get(maintenance, ClusterStatus.READY).value,
        k8s_version=k8s_version,
        gpus=inventory.registered(),
        allow_cluster_targeting=True,
        allow_task_cluster_creation_queues=True,
        nvca_version=agent_version(),
        backend=backend,
        heartbeat_seconds=heartbeat_seconds,
        attributes=attributes,
    )


@dataclass
class Registrar:
    """Keeps the cluster's registration up to date. `body` returns what it has to be.

    `has_instances` says whether the agent has some from before: they are never ended for a refusal.
    """

    client: IcmsClient
    body: Callable[[], Registration]
    timings: Timings
    has_instances: Callable[[], bool] = lambda: False
    monotonic: Callable[[], float] = time.monotonic
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _sent: Registration | None = None

    async def start(self) -> RegistrationAnswer:
        """Register for the first time, for as long as it takes.

        Raises `AgentError` if it is refused for `Timings.refused` seconds, and there is nothing to lose.
        """
        failures, refused_since = 0, None
        while True:
            try:
                return await self._register()
            except (AgentError, ContractError) as error:
                failures += 1
                refused = isinstance(error, ControlPlaneError) and error.status in _REFUSALS
                if not refused:
                    refused_since = None
                    _log.warning("cannot register the cluster, trying again: %s", error)
                else:
                    now = self.monotonic()
                    refused_since = now if refused_since is None else refused_since
                    text = f"the control plane refuses this agent: {error}; {_CHECK}"
                    over = now - refused_since >= self.timings.refused
                    if over and not self.has_instances():
                        raise AgentError(text) from error
                    _log.warning("%s; trying again", text)
                await asyncio.sleep(self._pause(failures))

    async def run(self) -> None:
        """Register again on each change and now and then, until cancelled."""
        failures = 0
        while True:
            pause = self._pause(failures) if failures else self.timings.register_again
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    while failures or self.body() == self._sent:
                        self.changed.clear()
                        await self.changed.wait()
            try:
                await self._register()
                failures = 0
            except (AgentError, ContractError) as error:
                failures += 1
                _log.warning("cannot register the cluster, trying again: %s", error)

    async def _register(self) -> RegistrationAnswer:
        body = self.body()
        answer = await self.client.register(body)
        self._sent = body
        return answer

    def _pause(self, failures: int) -> float:
        times = self.timings
        return growing_pause(times.retry_first, times.retry_longest, failures, random.random())  # noqa: S311
