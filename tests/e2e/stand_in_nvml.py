"""Stands for the module `pynvml` (nvidia-ml-py) on machines without a GPU: busy H100s."""

from __future__ import annotations

from types import SimpleNamespace


class NVMLError(Exception):
    """What the library raises; here never."""


def nvmlInit() -> None:  # noqa: N802 # the library's names
    """Start."""


def nvmlShutdown() -> None:  # noqa: N802
    """End."""


def nvmlDeviceGetCount() -> int:  # noqa: N802
    """As many as a cluster of the test has."""
    return 2


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    """A handle."""
    return index


def nvmlDeviceGetUUID(handle: int) -> str:  # noqa: N802
    """What CUDA knows it by."""
    return f"GPU-00000000-0000-0000-0000-00000000000{handle}"


def nvmlDeviceGetName(handle: int) -> str:  # noqa: N802
    """Its product."""
    return "NVIDIA H100 80GB HBM3"


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:  # noqa: N802
    """Percent."""
    return SimpleNamespace(gpu=73, memory=40)


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:  # noqa: N802
    """Bytes."""
    return SimpleNamespace(total=80 << 30, used=52 << 30, free=28 << 30)
