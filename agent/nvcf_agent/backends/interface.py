"""What the agent needs of whatever runs its instances: processes here, pods in a Kubernetes cluster."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Protocol

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.state.inventory import Inventory
from nvcf_agent.state.transitions import Event


@dataclass(frozen=True)
class Running:
    """An instance that the backend runs, as far as it can tell about it; `metrics` is where it serves its
    own, HOST:PORT.
    """

    instance_id: str
    log_path: str
    pid: int | None = None
    health_port: int | None = None
    metrics: str | None = None


class Backend(Protocol):
    """Runs instances. Calls may be repeated: creating what is there, deleting what is gone does nothing.

    The agent decides what runs and when; a backend restarts nothing by itself and keeps no state that it
    cannot find again: after the agent's own restart `list` is all that counts.
    """

    async def prepare(self, known: Collection[str]) -> None:
        """Called once, first: end and remove whatever belongs to none of the `known` instances."""
        ...

    async def create(self, spec: InstanceSpec) -> Running:
        """Start an instance.

        Raises `StartError` (try again), `LaunchError` (its own settings do not start) or `Refused` (never).
        """
        ...

    async def delete(self, instance_id: str, grace: float) -> None:
        """Ask it to leave, end it after `grace` seconds. Returns when nothing of it runs any more.

        A second call with less time shortens the first one.
        """
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

    async def capacity(self) -> Inventory:
        """All that instances may have here, taken or not."""
        ...

    async def close(self, grace: float) -> None:
        """The agent stops. What cannot live without it is ended, after `grace` seconds at most."""
        ...
