"""Which of several agents with one identity works, and what holds when the API server does not answer.

An agent whose lease cannot be renewed changes nothing in the cluster until it has the lease again: another
agent may work. It goes on saying what it knew, because an API server that is away ends no instance. Once
another agent has the lease, this one has to go.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import ICMS_REQUEST, LEASE, NVCF_BACKEND
from nvcf_agent.kubernetes.client.lease import Lease, LeaseTimes

_log = logging.getLogger(__name__)

LEASE_NAME = "nvcf-agent"


async def no_trace_of_a_leader(api: Api, backend: tuple[str, str] | None, requests_namespace: str) -> bool:
    """Return whether no agent has worked here yet: it would have left requests, or said how it is.

    `backend` are namespace and name of the NVCFBackend, if there is one. Raises `ApiError`.
    """
    if backend is not None:
        found = await api.get(NVCF_BACKEND, backend[1], backend[0])
        if (found or {}).get("status"):
            return False
    return not (await api.list(ICMS_REQUEST, requests_namespace)).items


class AnotherLeads(AgentError):
    """Another agent works for this cluster."""


@dataclass(eq=False)
class Leadership:
    """The lease of this process, won again and again until another agent has it."""

    api: Api
    namespace: str
    identity: str
    times: LeaseTimes
    is_first: Callable[[], Awaitable[bool]] | None = None
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _lease: Lease | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process may change anything in the cluster now."""
        return self._lease is not None and self._lease.is_held

    async def acquire(self) -> None:
        """Return when this process leads."""
        lease = Lease(self.api, self.namespace, LEASE_NAME, self.identity, self.times, self.is_first)
        self._lease = await self._stack.enter_async_context(lease.leading())

    async def keep(self, on_stalled: Callable[[bool], None]) -> None:
        """Lead until cancelled. Raises `AnotherLeads`.

        `on_stalled` is called with True when the lease is lost, and with False when it is held again.
        """
        while self._lease is not None:
            lease = self._lease
            await lease.lost()
            on_stalled(True)
            _log.warning(
                "the API server does not answer: instances go on, their last known state is reported, and "
                "nothing is changed"
            )
            await self._stack.aclose()
            await self._win_again(lease.identity)
            if self._lease.transitions != lease.transitions + 1:
                # What this agent knows of instances may be old.
                raise AnotherLeads("another agent has worked for this cluster in the meantime")
            _log.info("the API server answers again")
            on_stalled(False)

    async def _win_again(self, before: str) -> None:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._raise_if_another(before))
            await self.acquire()
            watching.cancel()

    async def _raise_if_another(self, before: str) -> None:
        while True:
            with contextlib.suppress(ApiError):
                found = await self.api.get(LEASE, LEASE_NAME, self.namespace)
                holder = ((found or {}).get("spec") or {}).get("holderIdentity")
                mine = self.identity + "_"
                if holder and holder != before and not holder.startswith(mine):
                    raise AnotherLeads(f"another agent works for this cluster now: {holder}")
            await asyncio.sleep(self.times.retry)

    async def close(self) -> None:
        """Let another agent lead at once. What this one did has ended."""
        await self._stack.aclose()
