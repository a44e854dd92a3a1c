"""What a machine has for instances: simulated GPUs from the command line, or those that NVML finds."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from nvcf_agent.errors import AgentError
from nvcf_agent.state.gpu_names import gpu_name
from nvcf_agent.state.machine_inventory import GpuDetails, MachineInventory


class Discovery(Protocol):
    """Finds out what instances can use."""

    async def discover(self) -> MachineInventory:
        """Return the inventory. Raises `AgentError`."""
        ...


@dataclass(frozen=True)
class Declared:
    """Takes the command line's word: GPUs are simulated, their devices numbered in the order given."""

    inventory: MachineInventory

    async def discover(self) -> MachineInventory:
        return self.inventory


@dataclass(frozen=True)
class Nvml:
    """Asks NVIDIA's library for the GPUs; everything else is as declared."""

    declared: MachineInventory

    async def discover(self) -> MachineInventory:
        found = await asyncio.to_thread(_devices)
        if not found:
            raise AgentError(
                "--gpus nvml: this machine has no NVIDIA GPU; leave the option out to run without"
            )
        return with_devices(self.declared, found)


@dataclass(frozen=True)
class Device:
    """One GPU of this machine."""

    product: str
    memory: int
    driver: str


def with_devices(declared: MachineInventory, devices: Sequence[Device]) -> MachineInventory:
    """Return the inventory with these GPUs, in the order of their numbers. Pure."""
    numbering = tuple(gpu_name(device.product) for device in devices)
    details: Mapping[str, GpuDetails] = {
        name: GpuDetails(f"{device.memory >> 30}Gi", device.driver or None, device.product)
        for name, device in zip(numbering, devices, strict=True)
    }
    return replace(
        declared, gpus=tuple(Counter(numbering).items()), numbering=numbering, details=dict(details)
    )


def _devices() -> list[Device]:
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        raise AgentError(
            "--gpus nvml: the package nvidia-ml-py is missing (pip install nvidia-ml-py)"
        ) from None
    try:
        pynvml.nvmlInit()
        try:
            return [_device(pynvml, number) for number in range(pynvml.nvmlDeviceGetCount())]
        finally:
            pynvml.nvmlShutdown()
    except (pynvml.NVMLError, OSError) as error:
        raise AgentError(f"--gpus nvml: {error}; is NVIDIA's driver installed?") from error


def _device(nvml: Any, number: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return Device(_text(nvml.nvmlDeviceGetName(handle)), memory, _text(nvml.nvmlSystemGetDriverVersion()))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
