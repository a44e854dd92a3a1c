"""The inventory of one machine: its GPUs by device number, and CPU slots. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from nvcf_agent.errors import AgentError, NoCapacity, Unsupported
from nvcf_agent.state import order as orders
from nvcf_agent.state.inventory import CPU, SINGLE, Limits, Share
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.icms.reports import Gpu, GpuUsage, InstanceType

DEFAULT_TYPE = "process"
DEFAULT_CPU_SLOTS = 256
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class GpuDetails:
    """What is known about the GPUs of one name, for people."""

    memory: str | None = None
    driver: str | None = None
    description: str = ""


@dataclass(frozen=True)
class MachineInventory:
    """Everything that instances of a machine can use.

    `gpus` are names with counts, `numbering` the name of each device in the order of CUDA's numbers (empty:
    in the order of `gpus`). `types` are the cluster's own instance types with their limits; each GPU has also
    the types `NCP.GPU.NAME_1x`, `_2x`, `_4x` and so on. A CPU instance takes a slot, a GPU instance at least
    one GPU. `cpu_arch` and `os` are those of the machine, in the words of Kubernetes: `amd64`, `linux`.
    """

    cpu_slots: int = DEFAULT_CPU_SLOTS
    gpus: tuple[tuple[str, int], ...] = ()
    types: tuple[tuple[str, Limits], ...] = ((DEFAULT_TYPE, Limits()),)
    numbering: tuple[str, ...] = ()
    details: Mapping[str, GpuDetails] = field(default_factory=dict)
    cpu_arch: str | None = None
    os: str | None = None

    def limits(self, instance_type: str) -> Limits:
        """Return the limits of an instance type."""
        return dict(self.types).get(instance_type, Limits())

    def devices(self, gpu: str) -> tuple[int, ...]:
        """Return the device numbers of the GPUs of one name."""
        numbering = self.numbering or tuple(name for name, count in self.gpus for _ in range(count))
        return tuple(number for number, name in enumerate(numbering) if name == gpu)

    def place(self, order: CreationMessage, taken: Iterable[Share], count: int = 1) -> list[Share]:
        """Return the shares of `count` new instances. Raises `NoCapacity` and `Unsupported`."""
        gpu, wanted = orders.gpu(order), self._gpus_of(order)
        held = list(taken)
        if gpu == CPU:
            if count > self.cpu_slots:
                raise Unsupported(f"{count} CPU slots wanted, this cluster has {self.cpu_slots}")
            free = self.cpu_slots - sum(share.slots for share in held)
            if count > free:
                raise NoCapacity(f"{count} CPU slots wanted, {max(0, free)} of {self.cpu_slots} free")
            return [Share(slots=1)] * count
        there = self.devices(gpu)
        if wanted * count > len(there):
            raise Unsupported(f"{wanted * count} {gpu} wanted, this cluster has {len(there)}")
        devices = self._free(there, held)
        if wanted * count > len(devices):
            raise NoCapacity(f"{wanted * count} {gpu} wanted, {len(devices)} of {len(there)} free")
        return [Share(devices=devices[number * wanted :][:wanted]) for number in range(count)]

    def _gpus_of(self, order: CreationMessage) -> int:
        """Return how many GPUs one instance takes. Only the cluster's own types leave it open."""
        gpu, name = orders.gpu(order), orders.instance_type(order)
        offered = {each.name: each.gpu_count for each in self.offered(gpu)}
        if not offered:
            names = ", ".join(each.name for each in self.registered()) or "none"
            raise Unsupported(f"this cluster has no GPU {gpu} (it has: {names})")
        if name not in offered:
            raise Unsupported(f"this cluster has no instance type {name} of {gpu}, only {', '.join(offered)}")
        return offered[name] or max(1, order.requested_gpu_count)

    def offered(self, gpu: str) -> tuple[InstanceType, ...]:
        """Return the instance types of one GPU name."""
        count = self.cpu_slots if gpu == CPU else len(self.devices(gpu))
        if not count:
            return ()
        details = self.details.get(gpu, GpuDetails())
        own = tuple(
            InstanceType(
                name=name,
                value=name,
                default=number == 0,
                gpu_memory=details.memory,
                cpu_arch=self.cpu_arch,
                os=self.os,
                driver_version=details.driver,
                node_type=SINGLE,
                max_instances=count,
            )
            for number, (name, _) in enumerate(self.types)
        )
        return own if gpu == CPU else own + self._derived(gpu, count)

    def _derived(self, gpu: str, count: int) -> tuple[InstanceType, ...]:
        value, details = f"NCP.GPU.{gpu}", self.details.get(gpu, GpuDetails())
        sizes = [2**power for power in range(count.bit_length())]
        return tuple(
            InstanceType(
                name=f"{value}_{size}x",
                value=value,
                description=details.description,
                gpu_count=size,
                gpu_memory=details.memory,
                cpu_arch=self.cpu_arch,
                os=self.os,
                driver_version=details.driver,
                node_type=SINGLE,
                max_instances=count // size,
            )
            for size in sizes
        )

    def registered(self) -> tuple[Gpu, ...]:
        """Return the GPUs of the registration, CPU slots among them."""
        counts = {CPU: self.cpu_slots, **dict(self.gpus)}
        return tuple(
            Gpu(name=name, capacity=count, instance_types=self.offered(name))
            for name, count in counts.items()
            if count
        )

    @staticmethod
    def _free(there: tuple[int, ...], held: list[Share]) -> tuple[int, ...]:
        taken = {device for share in held for device in share.devices}
        return tuple(device for device in there if device not in taken)

    def usage(self, taken: Iterable[Share]) -> dict[str, GpuUsage]:
        """Return what the heartbeat says: single GPUs and CPU slots by name."""
        held = list(taken)
        free = {CPU: max(0, self.cpu_slots - sum(share.slots for share in held))}
        free |= {name: len(self._free(self.devices(name), held)) for name in dict(self.gpus)}
        totals = {CPU: self.cpu_slots, **dict(self.gpus)}
        return {
            name: GpuUsage(total, total - free[name], free[name]) for name, total in totals.items() if total
        }


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
