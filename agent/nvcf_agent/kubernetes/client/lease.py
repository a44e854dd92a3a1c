"""Leadership among agents of one cluster, by a Lease object.

At most one leads at a time, as long as no clock runs much faster than another: the leader gives up some
seconds before its lease runs out, and another takes it only after it has seen the lease unchanged for the
whole duration. Both measure with their own monotonic clock; the times in the object are for readers.

(`kubernetes.aio.leaderelection` measures by the clock of the wall, and a lost connection ends its renewals
while what it started still leads.)
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import LEASE

_log = logging.getLogger(__name__)

SOMEBODY = "unknown"
"""Holder of a lease that was made anew. Whoever led under one that was deleted may still do so until then."""
_RELEASE_SECONDS = 3.0


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds: how long a lease is valid, when its holder gives up renewing it, and between two tries.

    What the leader does must end within the difference of the first two.
    """

    duration: int = 15
    give_up: float = 10.0
    retry: float = 2.0


@dataclass(eq=False)
class Lease:
    """The lease of a leader. `identity` is for readers of the Lease object, and gets an end of its own.

    `is_first` is asked where there is no lease: whether nobody can have led before, so that this process need
    not wait.
    """

    api: Api
    namespace: str
    name: str
    identity: str
    times: LeaseTimes = LeaseTimes()
    is_first: Callable[[], Awaitable[bool]] | None = None
    transitions: int = 0
    """How often the lease had got a new holder when this one got it."""
    _version: str = ""
    _until: float = float("-inf")
    _lost: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        # Two processes of one name must not take each other's lease for their own.
        self.identity = f"{self.identity}_{uuid.uuid4().hex}"

    @asynccontextmanager
    async def leading(self) -> AsyncGenerator[Self]:
        """Wait until this process leads, and renew the lease inside. `lost()` tells to stop.

        After the block another one may lead at once.
        """
        await self.acquire()
        renewing = asyncio.create_task(self.keep())
        try:
            yield self
        finally:
            was_held = self.is_held
            renewing.cancel()
            await asyncio.wait([renewing])
            if was_held:
                await self.release()
        if not renewing.cancelled():
            renewing.result()

    @property
    def is_held(self) -> bool:
        """Whether this process leads. To be asked before what only a leader may do."""
        return not self._lost.is_set() and _now() < self._until

    async def lost(self) -> None:
        """Return when this process must not lead any more."""
        await self._lost.wait()

    async def acquire(self) -> None:
        """Return when this process leads."""
        seen: Object | None = None
        since = _now()
        while True:
            try:
                found = await self.api.get(LEASE, self.name, self.namespace)
                if found is None:
                    if await self._make(was_there=seen is not None):
                        return
                    continue
                spec = found.get("spec") or {}
                if spec != seen:
                    seen, since = spec, _now()
                    _log.info("lease %s is held by %s", self.name, spec.get("holderIdentity") or "nobody")
                duration = spec.get("leaseDurationSeconds") or self.times.duration
                is_free = spec.get("holderIdentity") in (None, "", self.identity)
                if is_free or _now() - since >= duration:
                    await self._take(found)
                    self._log_leading()
                    return
            except ApiError as error:
                _log.log(logging.DEBUG if error.is_conflict else logging.WARNING, "lease: %s", error)
            await asyncio.sleep(self.times.retry)

    async def _make(self, *, was_there: bool) -> bool:
        """Make the lease; return whether this process leads at once, because nobody can have led before."""
        mine = not was_there and self.is_first is not None and await self.is_first()
        began = _now()
        made = await self.api.create(LEASE, self._body(self.identity if mine else SOMEBODY))
        if mine:
            self._version = made["metadata"]["resourceVersion"]
            self._until = began + self.times.give_up
            self._log_leading()
        return mine

    def _log_leading(self) -> None:
        _log.info("this agent leads as %s", self.identity)

    async def keep(self) -> None:
        """Renew the lease until it is lost."""
        try:
            async with asyncio.timeout_at(self._until) as limit:
                while True:
                    await asyncio.sleep(self.times.retry)
                    if not await self._renew():
                        _log.warning("this agent leads no more: another one has taken the lease")
                        return
                    limit.reschedule(self._until)
        except TimeoutError:
            _log.warning("this agent leads no more: its lease cannot be renewed")
        finally:
            self._lost.set()

    async def release(self) -> None:
        """Let another one lead at once. What the leader did has ended."""
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                # A renewal may have been under way.
                found = await self.api.get(LEASE, self.name, self.namespace)
                if found is not None and found["spec"].get("holderIdentity") == self.identity:
                    self._version = found["metadata"]["resourceVersion"]
                    await self._write(self._body(""))
        except (ApiError, TimeoutError) as error:
            _log.info("the lease is not released, and runs out: %s", error)

    async def _renew(self) -> bool:
        """Renew once. Return False if the lease is not this process's any more."""
        try:
            began = _now()
            await self._write({"spec": {"renewTime": _wall()}})
            self._until = began + self.times.give_up
            return True
        except ApiError as error:
            if not (error.is_conflict or error.is_missing):
                _log.warning("lease: %s", error)
                return True
        try:
            # Changed by somebody's hand, or by a renewal whose answer was lost.
            found = await self.api.get(LEASE, self.name, self.namespace)
        except ApiError as error:
            _log.warning("lease: %s", error)
            return True
        if found is None or found["spec"].get("holderIdentity") != self.identity:
            return False
        self._version = found["metadata"]["resourceVersion"]
        return True

    async def _take(self, found: Object) -> None:
        spec = found.get("spec") or {}
        body = self._body(self.identity)
        same = spec.get("holderIdentity") == self.identity
        self.transitions = (spec.get("leaseTransitions") or 0) + (not same)
        body["spec"]["leaseTransitions"] = self.transitions
        self._version = found["metadata"]["resourceVersion"]
        began = _now()
        await self._write(body)
        self._until = began + self.times.give_up

    async def _write(self, body: Object) -> None:
        body["metadata"] = {"resourceVersion": self._version}
        written = await self.api.patch(LEASE, self.name, self.namespace, body)
        self._version = written["metadata"]["resourceVersion"]

    def _body(self, holder: str) -> Object:
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": self.times.duration,
            "acquireTime": _wall(),
            "renewTime": _wall(),
        }
        return {"metadata": {"name": self.name, "namespace": self.namespace}, "spec": spec}


def _now() -> float:
    return asyncio.get_running_loop().time()


def _wall() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
