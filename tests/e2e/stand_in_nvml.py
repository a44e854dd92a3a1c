"""A fake of the module `pynvml` (nvidia-ml-py) for machines without a GPU: busy H100s."""

from __future__ import annotations

from types import SimpleNamespace


class NVMLError(Exception):
    """The error class of the library. The fake never raises it."""


def nvmlInit() -> None:  # noqa: N802 # the library's names
    """Do nothing."""


def nvmlShutdown() -> None:  # noqa: N802
    """Do nothing."""


def nvmlDeviceGetCount() -> int:  # noqa: N802
    """Return the number of GPUs in a cluster of the test."""
    return 2


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    """Return a handle."""
    return index


def nvmlDeviceGetUUID(handle: int) -> str:  # noqa: N802
    """Return the id that CUDA uses."""
    return f"GPU-00000000-0000-0000-0000-00000000000{handle}"


def nvmlDeviceGetName(handle: int) -> str:  # noqa: N802
    """Return the product name."""
    return "NVIDIA H100 80GB HBM3"


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:  # noqa: N802
    """Return the utilisation in percent."""
    return SimpleNamespace(gpu=73, memory=40)


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:  # noqa: N802
    """Return the memory in bytes."""
    return SimpleNamespace(total=80 << 30, used=52 << 30, free=28 << 30)
