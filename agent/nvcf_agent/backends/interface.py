"""What the agent needs of whatever runs its instances: processes here, pods in a cluster."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from nvcf_agent.environment import InstanceSpec


@dataclass(frozen=True)
class Running:
    """An instance that the backend runs, as far as it can tell about it."""

    instance_id: str
    log_path: str
    pid: int | None = None
    health_port: int | None = None


@dataclass(frozen=True)
class Ready:
    """The instance's health check answered 200 for the first time."""

    instance_id: str


@dataclass(frozen=True)
class Ended:
    """The instance is gone, asked for or not; `reason` says how and with which last words."""

    instance_id: str
    reason: str


Event = Ready | Ended


@dataclass(frozen=True)
class Capacity:
    """How many instances fit, and how many are there."""

    instances: int
    used: int


class Backend(Protocol):
    """Runs instances. Calls may be repeated: creating what is there, deleting what is gone does nothing."""

    async def create(self, spec: InstanceSpec) -> Running:
        """Start an instance. Raises `StartError` if that cannot be done now."""
        ...

    async def delete(self, instance_id: str, grace: float) -> None:
        """Ask it to leave, end it after `grace` seconds. Returns when nothing of it runs any more."""
        ...

    async def forget(self, instance_id: str) -> None:
        """Remove what was kept for its next start. Its log stays readable for a while."""
        ...

    async def list(self) -> list[Running]:
        """What runs now."""
        ...

    def watch(self) -> AsyncIterator[Event]:
        """Everything that happens to instances, in order; one consumer."""
        ...

    async def capacity(self) -> Capacity:
        """Room for instances."""
        ...
