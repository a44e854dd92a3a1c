"""GPU metrics from NVIDIA's management library (NVML). No metrics without the library or a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from nvcf_otel import names, worker_instruments

log = logging.getLogger("nvcf_otel")

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Gpu:
    """One GPU: NVML's handle, the product name and the UUID that CUDA uses."""

    index: int
    uuid: str
    name: str
    handle: Any


def chosen(visible: str | None, gpus: Iterable[Gpu]) -> list[Gpu]:
    """Return the GPUs that `CUDA_VISIBLE_DEVICES` allows: indices or UUIDs, up to the first invalid one.

    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#env-vars
    """
    everything = list(gpus)
    if visible is None:
        return everything
    found: list[Gpu] = []
    for part in (each.strip() for each in visible.split(",")):
        matching = [
            gpu for gpu in everything if part and (part == str(gpu.index) or gpu.uuid.startswith(part))
        ]
        if len(matching) != 1 or matching[0] in found:
            break
        found.append(matching[0])
    return found


class Gpus:
    """The GPUs that this process may use. Created by `opened`."""

    def __init__(self, nvml: Any, gpus: list[Gpu], attributes: Mapping[str, str]) -> None:
        self._nvml = nvml
        self._gpus = gpus
        self._attributes = attributes

    def observe(self, meter: Meter) -> None:
        """Register the metrics of utilisation and memory."""
        nvml = self._nvml
        worker_instruments.GPU_UTILIZATION.create(
            meter, self._each(lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        )
        worker_instruments.GPU_MEMORY_USAGE.create(
            meter, self._each(lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used)
        )
        worker_instruments.GPU_MEMORY_LIMIT.create(
            meter, self._each(lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).total)
        )

    def _each(self, value: Callable[[Any], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observed(_: CallbackOptions) -> Iterable[Observation]:
            found = []
            for gpu in self._gpus:
                try:
                    measured = value(gpu.handle)
                except self._nvml.NVMLError:
                    # A part of a GPU (MIG) has no utilisation, and a lost GPU has no values.
                    continue
                found.append(
                    Observation(
                        measured, {**self._attributes, names.HW_ID: gpu.uuid, names.HW_NAME: gpu.name}
                    )
                )
            return found

        return observed

    def close(self) -> None:
        """Release the library."""
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            log.debug("NVML could not be shut down: %s", error)


def opened(environ: Mapping[str, str], attributes: Mapping[str, str]) -> Gpus | None:
    """Return the GPUs of this process, None without GPUs or without access to them.

    `attributes` go with each metric. Loads a library: do not call it on a running event loop.
    """
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError) as error:
        log.debug("no GPU metrics: %s", error)
        return None
    try:
        gpus = chosen(environ.get(VISIBLE_DEVICES), _all(pynvml))
    except pynvml.NVMLError as error:
        log.warning("no GPU metrics: %s", error)
        gpus = []
    found = Gpus(pynvml, gpus, attributes)
    if not gpus:
        found.close()
        return None
    return found


def _all(nvml: Any) -> Iterable[Gpu]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        yield Gpu(index, _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle)), handle)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
