"""Interface of a backend that runs instances: processes, or pods in a Kubernetes cluster."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nvcf_agent.backends.environment import InstanceOf, InstanceSpec
from nvcf_agent.state.events import Event


@dataclass(frozen=True)
class Running:
    """An instance that the backend runs. `metrics` is where it serves metrics, HOST:PORT.

    `ready`: whether it serves; None if an event will say so.
    """

    instance_id: str
    log_path: str
    pid: int | None = None
    health_port: int | None = None
    metrics: str | None = None
    ready: bool | None = None


class Secrets(Protocol):
    """Brings instances their secrets, and new ones while they run."""

    async def begin(
        self, instance: InstanceOf, home: Path | None = None, uid: int | None = None
    ) -> Path | None:
        """Write the secrets of a new instance, for its user `uid` (None: the agent's); return their folder.

        `home` is the instance's folder, if it has any. Raises `StartError` and OSError.
        """
        ...

    async def adopt(self, instance: InstanceOf) -> None:
        """Follow the secrets of an instance that an earlier agent has started."""
        ...

    async def end(self, instance_id: str) -> None:
        """Remove the secrets of an instance, if it has any."""
        ...


class NoSecrets:
    """Brings no secrets."""

    async def begin(
        self, instance: InstanceOf, home: Path | None = None, uid: int | None = None
    ) -> Path | None:
        return None

    async def adopt(self, instance: InstanceOf) -> None:
        return None

    async def end(self, instance_id: str) -> None:
        return None


NO_SECRETS = NoSecrets()


class Backend(Protocol):
    """Runs instances.

    Calls may be repeated: creating an existing instance or deleting a missing one does nothing. The agent
    decides what runs and when. A backend keeps no state that it cannot find again: after a restart of the
    agent, only `list` counts. With `restarts`, the agent starts an ended instance again a few times, and its
    instances end with the agent. Without, an end is final, and instances outlive the agent.
    """

    name: str
    """`process` or `kubernetes`, as the control plane knows it."""
    restarts: bool

    async def prepare(self, known: Collection[str]) -> None:
        """End and remove what belongs to none of the `known` instances. Called once, first."""
        ...

    async def create(self, spec: InstanceSpec) -> Running:
        """Start an instance.

        Raises `StartError` (retry), `LaunchError` (the function's settings do not start) or `Refused`
        (never).
        """
        ...

    async def delete(self, instance_id: str, grace: float) -> None:
        """Ask an instance to end, and kill it after `grace` seconds. Returns when nothing of it runs.

        A second call with less time shortens the first one. Any `AgentError` means that it is tried again.
        """
        ...

    async def held_requests(self, instance_id: str, version_id: str, wall: float) -> tuple[str, ...]:
        """Return the acknowledgement subjects of the requests that an ended instance still held."""
        ...

    async def forget(self, instance_id: str) -> None:
        """Remove the files for its next start. Its log stays for a while."""
        ...

    async def list(self) -> list[Running]:
        """Return the running instances."""
        ...

    def watch(self) -> AsyncIterator[Event]:
        """Yield all events of instances in order, to one consumer."""
        ...

    async def close(self, grace: float) -> None:
        """End what cannot outlive the agent, within `grace` seconds."""
        ...
