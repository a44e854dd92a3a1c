"""Node objects as the API server has them, with the labels of NVIDIA's GPU operator."""

from __future__ import annotations

from typing import Any


def node(
    name: str = "node-1",
    *,
    gpus: int = 8,
    product: str = "NVIDIA-H100-80GB-HBM3",
    ready: bool = True,
    cordoned: bool = False,
    resource: str = "nvidia.com/gpu",
    labels: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return a node with 64 processors, 512 GiB of memory and 1000 GiB of storage."""
    return {
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/os": "linux",
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": product,
                "nvidia.com/gpu.family": "hopper",
                "nvidia.com/gpu.machine": "dgx-h100",
                "nvidia.com/gpu.memory": "81559",
                "nvidia.com/gpu.count": str(gpus),
                "nvidia.com/cuda.driver.major": "550",
                "nvidia.com/cuda.driver.minor": "90",
                "nvidia.com/cuda.driver.rev": "07",
                **(labels or {}),
            },
        },
        "spec": {"unschedulable": True} if cordoned else {},
        "status": {
            "allocatable": {
                "cpu": "64",
                "memory": "512Gi",
                "ephemeral-storage": "1000Gi",
                resource: str(gpus),
            },
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
        },
    }
