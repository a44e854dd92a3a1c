"""A cluster's inventory: what it has, what its instances take, and what is free. Pure.

What is taken is computed from the instances, so nothing can leak. An instance holds its share from the moment
it is accepted until nothing of it runs.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nvcf_agent.errors import AgentError, NoCapacity, Unsupported
from nvcf_proto.compute import CreationMessage, GpuPool

CPU = "CPU"
DEFAULT_TYPE = "process"
DEFAULT_CPU_SLOTS = 256
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Limits:
    """Limits of one instance: bytes of memory, processors (0.5 is half of one). None: no limit."""

    memory: int | None = None
    cpus: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything is limited."""
        return self.memory is not None or self.cpus is not None


@dataclass(frozen=True)
class Inventory:
    """Everything that instances of a cluster can use.

    `gpus` are names with counts. Devices are numbered in this order, as CUDA does. `types` are the cluster's
    instance types with their limits. A CPU instance takes a slot, a GPU instance at least one GPU.
    """

    cpu_slots: int = DEFAULT_CPU_SLOTS
    gpus: tuple[tuple[str, int], ...] = ()
    types: tuple[tuple[str, Limits], ...] = ((DEFAULT_TYPE, Limits()),)

    def limits(self, instance_type: str) -> Limits:
        """Return the limits of an instance type. Raises `Unsupported` for an unknown one."""
        for name, limits in self.types:
            if name == instance_type:
                return limits
        known = ", ".join(name for name, _ in self.types)
        raise Unsupported(f"this cluster has no instance type {instance_type}, only {known}")

    def devices(self, gpu: str) -> tuple[int, ...]:
        """Return the device numbers of the GPUs of one name."""
        first = 0
        found: list[int] = []
        for name, count in self.gpus:
            if name == gpu:
                found.extend(range(first, first + count))
            first += count
        return tuple(found)

    def place(self, order: CreationMessage, taken: Iterable["Share"]) -> "Share":
        """Return the share of a new instance. Raises `NoCapacity` and `Unsupported`."""
        self.limits(order.instance_type)
        held = list(taken)
        if order.gpu == CPU:
            used = sum(share.slots for share in held)
            if used >= self.cpu_slots:
                raise NoCapacity(f"all {self.cpu_slots} CPU slots of this cluster are taken")
            return Share(slots=1)
        there = self.devices(order.gpu)
        if not there:
            names = ", ".join(name for name, _ in self.gpus) or "none"
            raise Unsupported(f"this cluster has no GPU {order.gpu} (it has: {names})")
        free = self._free(there, held)
        wanted = max(1, order.gpus_per_instance)
        if wanted > len(free):
            raise NoCapacity(f"{wanted} {order.gpu} wanted, {len(free)} of {len(there)} free")
        return Share(devices=free[:wanted])

    @staticmethod
    def _free(there: tuple[int, ...], held: list["Share"]) -> tuple[int, ...]:
        taken = {device for share in held for device in share.devices}
        return tuple(device for device in there if device not in taken)

    def pools(self, taken: Iterable["Share"]) -> tuple[GpuPool, ...]:
        """Return the pools of the heartbeat: CPU slots and single GPUs by instance type; types share them."""
        held = list(taken)
        kinds = {CPU: (self.cpu_slots, max(0, self.cpu_slots - sum(share.slots for share in held)))}
        for name in dict(self.gpus):
            there = self.devices(name)
            kinds[name] = (len(there), len(self._free(there, held)))
        return tuple(
            GpuPool(gpu, instance_type, total, free)
            for gpu, (total, free) in kinds.items()
            if total
            for instance_type, _ in self.types
        )


@dataclass(frozen=True)
class Share:
    """What one instance holds: CPU slots and device numbers of GPUs."""

    slots: int = 0
    devices: tuple[int, ...] = ()

    @property
    def visible_devices(self) -> str | None:
        """The value of CUDA_VISIBLE_DEVICES; None for an instance without GPUs."""
        return ",".join(map(str, self.devices)) or None


def parse_gpus(text: str) -> tuple[str, int]:
    """Parse `NAME=COUNT`. Raises `AgentError`."""
    name, separator, count = text.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name) or name == CPU:
        raise AgentError(f"--gpu {text}: NAME=COUNT expected, for example L40S=4")
    if not count.isdigit() or not 1 <= int(count) <= 1024:
        raise AgentError(f"--gpu {text}: a count from 1 to 1024 expected")
    return name, int(count)


def parse_instance_type(text: str) -> tuple[str, Limits]:
    """Parse `NAME[,memory=SIZE][,cpus=NUMBER]`, sizes as of `parse_size`. Raises `AgentError`."""
    name, *parts = text.split(",")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name):
        raise AgentError(f"--instance-type {text}: NAME[,memory=SIZE][,cpus=NUMBER] expected")
    values: Mapping[str, str] = dict(part.partition("=")[::2] for part in parts)
    unknown = set(values) - {"memory", "cpus"}
    if unknown:
        raise AgentError(f"--instance-type {text}: {min(unknown)} is not known, only memory and cpus")
    memory = parse_size(values["memory"]) if "memory" in values else None
    cpus = _processors(values["cpus"], text) if "cpus" in values else None
    return name, Limits(memory, cpus)


def parse_size(value: str) -> int:
    """Return the bytes of `512M`, `2G` (powers of 1024). Raises `AgentError`."""
    match = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(i?B)?", value)
    if match is None or int(match[1]) == 0:
        raise AgentError(f"{value} is not a memory size: write 512M or 2G")
    return int(match[1]) * _UNITS[match[2]]


def _processors(value: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,3})?", value) or float(value) < 0.01:
        raise AgentError(f"--instance-type {text}: cpus={value} is not a number of processors (0.01 or more)")
    return float(value)
