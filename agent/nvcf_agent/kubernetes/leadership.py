"""Which of several agents with one identity works, and what holds when the API server does not answer.

An agent whose lease cannot be renewed changes nothing in the cluster until it has the lease again: another
agent may work. It goes on saying what it knew, because an API server that is away ends no instance. Once
another agent has the lease, this one has to go.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import ICMS_REQUEST, LEASE, NVCF_BACKEND, Kind
from nvcf_agent.kubernetes.client.lease import Lease, LeaseTimes, leading

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


class Leadership:
    """The lease of this process, won again and again until another agent has it."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        identity: str,
        times: LeaseTimes,
        is_first: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._times = times
        self._is_first = is_first
        self._stack = contextlib.AsyncExitStack()
        self._lease: Lease | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process may change anything in the cluster now."""
        return self._lease is not None and self._lease.is_held

    async def acquire(self) -> None:
        """Return when this process leads."""
        self._lease = await self._stack.enter_async_context(
            leading(self._api, self._namespace, LEASE_NAME, self._identity, self._times, self._is_first)
        )

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
                found = await self._api.get(LEASE, LEASE_NAME, self._namespace)
                holder = ((found or {}).get("spec") or {}).get("holderIdentity")
                mine = self._identity + "_"
                if holder and holder != before and not holder.startswith(mine):
                    raise AnotherLeads(f"another agent works for this cluster now: {holder}")
            await asyncio.sleep(self._times.retry)

    async def close(self) -> None:
        """Let another agent lead at once. What this one did has ended."""
        await self._stack.aclose()


class LeaderApi(Api):
    """Calls the API server, and changes something only while this process leads."""

    leads: Callable[[], bool] = staticmethod(lambda: False)

    def _check(self) -> None:
        if not self.leads():
            raise ApiError(0, "NotLeader", "nothing is changed without the lease")

    async def create(self, kind: Kind, body: Object) -> Object:
        self._check()
        return await super().create(kind, body)

    async def apply(self, kind: Kind, body: Object, *, part: str | None = None, force: bool = True) -> Object:
        self._check()
        return await super().apply(kind, body, part=part, force=force)

    async def patch(self, *args: Any, **options: Any) -> Object:
        self._check()
        return await super().patch(*args, **options)

    async def delete(self, *args: Any, **options: Any) -> bool:
        self._check()
        return await super().delete(*args, **options)
