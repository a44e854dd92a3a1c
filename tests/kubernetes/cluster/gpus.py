"""Models of GPUs, and the labels that NVIDIA's GPU operator (GPU feature discovery) gives their nodes."""

from __future__ import annotations

from dataclasses import dataclass

RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True)
class Gpu:
    """A model of GPU as the GPU operator's labels name it."""

    product: str
    family: str
    memory_mib: int


H100 = Gpu("NVIDIA-H100-80GB-HBM3", "hopper", 81559)
L40 = Gpu("NVIDIA-L40", "ada-lovelace", 46068)
A10G = Gpu("NVIDIA-A10G", "ampere", 23028)


def gpu_labels(gpu: Gpu, count: int) -> dict[str, str]:
    """Return the labels that the GPU operator gives a node with whole GPUs."""
    return {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": gpu.product,
        "nvidia.com/gpu.family": gpu.family,
        "nvidia.com/gpu.count": str(count),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.memory": str(gpu.memory_mib),
        "nvidia.com/gpu.machine": "Test-Machine",
        "nvidia.com/gpu.deploy.device-plugin": "true",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/mig.capable": "true" if gpu.family == "hopper" else "false",
        "nvidia.com/mig.strategy": "single",
        "nvidia.com/cuda.driver-version.full": "570.86.15",
        "nvidia.com/cuda.runtime-version.full": "12.8",
    }
