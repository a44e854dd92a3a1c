"""What a cluster has for its instances, what they take, and what is free. Pure.

What is taken is computed from the instances, so nothing can leak. An instance holds its share from the moment
it is accepted until nothing of it runs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.icms.reports import Gpu, GpuUsage

CPU = "CPU"
SINGLE = "SINGLE"
"""Node type of an instance on one node."""


@dataclass(frozen=True)
class Limits:
    """Limits of one instance: bytes of memory, processors (0.5 is half of one). None: no limit."""

    memory: int | None = None
    cpus: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return self.memory is not None or self.cpus is not None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Share:
    """What one instance holds: CPU slots and GPUs.

    On one machine, GPUs are device numbers. In a cluster of nodes, they are `gpus` of the name `gpu` on
    each of `nodes` nodes; `node` is the one that the instance is on, once that is known.
    """

    slots: int = 0
    devices: tuple[int, ...] = ()
    gpu: str = ""
    gpus: int = 0
    nodes: int = 1
    node: str = ""

    @property
    def visible_devices(self) -> str | None:
        """The value of CUDA_VISIBLE_DEVICES; None for an instance without GPUs of its own machine."""
        return ",".join(map(str, self.devices)) or None


class Inventory(Protocol):
    """What the instances of a cluster can use. A value: when it changes, another one takes its place."""

    def place(self, order: CreationMessage, taken: Iterable[Share], count: int = 1) -> list[Share]:
        """Return the shares of `count` new instances. Raises `NoCapacity` and `Unsupported`."""
        ...

    def limits(self, instance_type: str) -> Limits:
        """Return the limits of an instance type."""
        ...

    def registered(self) -> tuple[Gpu, ...]:
        """Return the GPUs of the registration, CPU slots among them."""
        ...

    def usage(self, taken: Iterable[Share]) -> dict[str, GpuUsage]:
        """Return what the heartbeat says: single GPUs and CPU slots by name."""
        ...
