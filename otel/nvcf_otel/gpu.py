"""GPUs through NVIDIA's management library (NVML). Without the library or a GPU there is nothing to tell."""

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
    """One GPU: NVML's handle, the name of its product and the UUID that CUDA knows it by."""

    index: int
    uuid: str
    name: str
    handle: Any


def chosen(visible: str | None, gpus: Iterable[Gpu]) -> list[Gpu]:
    """Those that `CUDA_VISIBLE_DEVICES` leaves a process: indices or UUIDs, up to the first that is neither.

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
    """The GPUs that this process may use. Made by `opened`."""

    def __init__(self, nvml: Any, gpus: list[Gpu], attributes: Mapping[str, str]) -> None:
        self._nvml = nvml
        self._gpus = gpus
        self._attributes = attributes

    def observe(self, meter: Meter) -> None:
        """Let utilisation and memory be collected."""
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
                    # A part of a GPU (MIG) has no utilisation, and one that fell off the bus has nothing.
                    continue
                found.append(
                    Observation(
                        measured, {**self._attributes, names.HW_ID: gpu.uuid, names.HW_NAME: gpu.name}
                    )
                )
            return found

        return observed

    def close(self) -> None:
        """Let go of the library."""
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            log.debug("NVML could not be shut down: %s", error)


def opened(environ: Mapping[str, str], attributes: Mapping[str, str]) -> Gpus | None:
    """The GPUs of this process, None if there are none or they cannot be asked.

    `attributes` go with each figure. Loads a library: not to be called on an event loop that is in use.
    """
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError) as error:
        log.debug("no GPU figures: %s", error)
        return None
    try:
        gpus = chosen(environ.get(VISIBLE_DEVICES), _all(pynvml))
    except pynvml.NVMLError as error:
        log.warning("no GPU figures: %s", error)
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
