"""GPU metrics from NVML: against a stand-in for its shared library, and without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nvcf_otel.gpu import Gpu, chosen

SOURCE = Path(__file__).parent.parent.parent / "support" / "stand_in_nvml.c"
SCRIPT = """
import json, os
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from nvcf_otel import gpu

reader = InMemoryMetricReader()
gpus = gpu.opened(os.environ, {"who": "me"})
if gpus is not None:
    gpus.observe(MeterProvider([reader]).get_meter("test"))
data = reader.get_metrics_data()
found = []
for of_resource in data.resource_metrics if data else ():
    for scope in of_resource.scope_metrics:
        for metric in scope.metrics:
            for point in metric.data.data_points:
                told = dict(point.attributes)
                found.append([metric.name, told["hw.id"][:5], told["hw.name"], told["who"], point.value])
print(json.dumps(found))
"""

FIRST, SECOND = "GPU-0", "GPU-1"
GPUS = [Gpu(0, "GPU-aaaa", "A", None), Gpu(1, "GPU-abbb", "B", None), Gpu(2, "GPU-cccc", "C", None)]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("GPU-abbb,GPU-c", [1, 2]),
        ("GPU-a", []),  # more than one begins so
        ("0,-1,2", [0]),  # what comes after the first that is none does not count
        ("0,0", [0]),
        ("7", []),
    ],
)
def test_which_gpus_a_process_has(visible: str | None, expected: list[int]) -> None:
    assert [gpu.index for gpu in chosen(visible, GPUS)] == expected


def metrics(environment: dict[str, str]) -> list[list[object]]:
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return list(json.loads(run.stdout))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in library")
    directory = tmp_path_factory.mktemp("nvml")
    command = [compiler, "-shared", "-fPIC", "-o", str(directory / "libnvidia-ml.so.1"), str(SOURCE)]
    subprocess.run(command, check=True)
    return directory


def test_utilisation_and_memory_of_each_gpu(library: Path) -> None:
    found = metrics({"LD_LIBRARY_PATH": str(library)})
    gib = 1 << 30
    assert sorted(found, key=str) == sorted(
        [
            # The second one does not tell its utilisation, as parts of GPUs do not.
            ["hw.gpu.utilization", FIRST, "Stand-in 0", "me", 0.73],
            ["hw.gpu.memory.usage", FIRST, "Stand-in 0", "me", gib],
            ["hw.gpu.memory.usage", SECOND, "Stand-in 1", "me", 2 * gib],
            ["hw.gpu.memory.limit", FIRST, "Stand-in 0", "me", 48 * gib],
            ["hw.gpu.memory.limit", SECOND, "Stand-in 1", "me", 48 * gib],
        ],
        key=str,
    )


def test_only_gpus_that_the_process_may_use(library: Path) -> None:
    found = metrics({"LD_LIBRARY_PATH": str(library), "CUDA_VISIBLE_DEVICES": "1"})
    assert {each[1] for each in found} == {SECOND}
    assert metrics({"LD_LIBRARY_PATH": str(library), "CUDA_VISIBLE_DEVICES": ""}) == []


def test_without_the_library_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert metrics({"LD_LIBRARY_PATH": str(tmp_path)}) == []
