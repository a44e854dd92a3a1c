"""What a machine has: declared, or found by NVML (a stand-in for its Python module)."""

from __future__ import annotations

import sys

import pytest

from nvcf_agent.capacity import Declared, Device, Nvml, with_devices
from nvcf_agent.errors import AgentError
from nvcf_agent.options import discovery, parse_arguments
from nvcf_agent.state.back_off import RoomBackOff
from nvcf_agent.state.gpu_names import gpu_name
from nvcf_agent.state.machine_inventory import MachineInventory
from nvcf_agent.timings import Timings
from tests.e2e import stand_in_nvml

FLAGS = ["--icms", "http://x", "--nats", "nats://x", "--cluster-id", "c", "--key-file", "k", "--data", "d"]


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA RTX A6000", "RTXA6000"),
        ("GeForce GTX 1080 Ti", "GTX1080"),
        ("Tesla T4", "T4"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("", "GPU"),
        ("NVIDIA", "GPU"),
        ("ü.*>", "GPU"),
    ],
)
def test_names_of_gpus_are_nvidias(product: str, name: str) -> None:
    assert gpu_name(product) == name


def test_devices_keep_their_numbers() -> None:
    h100, l40s = Device("NVIDIA H100 80GB HBM3", 80 << 30, "550"), Device("NVIDIA L40S", 48 << 30, "550")
    found = with_devices(MachineInventory(cpu_slots=1), [h100, l40s, h100])
    assert found.gpus == (("H100", 2), ("L40S", 1))
    assert (found.devices("H100"), found.devices("L40S")) == ((0, 2), (1,))
    two = next(each for each in found.offered("H100") if each.gpu_count == 2)
    assert (two.gpu_memory, two.driver_version) == ("80Gi", "550")


async def test_nvml_finds_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in_nvml)
    monkeypatch.setattr(stand_in_nvml, "nvmlSystemGetDriverVersion", lambda: b"550.90", raising=False)
    found = await discovery(parse_arguments([*FLAGS, "--gpus", "nvml"])).discover()
    assert found.gpus == (("H100", 2),)
    assert found.cpu_slots == 256


async def test_without_a_library_or_a_gpu_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(AgentError, match="nvidia-ml-py"):
        await Nvml(MachineInventory()).discover()
    monkeypatch.setitem(sys.modules, "pynvml", stand_in_nvml)
    monkeypatch.setattr(stand_in_nvml, "nvmlDeviceGetCount", lambda: 0)
    with pytest.raises(AgentError, match="no NVIDIA GPU"):
        await Nvml(MachineInventory()).discover()


def test_gpus_are_either_declared_or_found() -> None:
    assert isinstance(discovery(parse_arguments([*FLAGS, "--gpu", "L40S=2"])), Declared)
    with pytest.raises(AgentError, match="leave --gpu out"):
        discovery(parse_arguments([*FLAGS, "--gpus", "nvml", "--gpu", "L40S=2"]))


@pytest.mark.parametrize(
    "wrong",
    [
        ["--cluster-id", "a.b"],
        ["--cluster-id", ""],
        ["--heartbeat", "0"],
        ["--heartbeat", "nan"],
        ["--heartbeat", "soon"],
        ["--token-file", "t"],
    ],
)
def test_wrong_flags_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments([*FLAGS, *wrong])
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_gpu_without_room_is_skipped_for_growing_pauses_until_something_ends() -> None:
    room = RoomBackOff(Timings())
    assert room.left("H100", 0.0) == 0.0
    pauses = [room.no_room("H100", 0.0, 0.999) for _ in range(6)]
    assert [round(each) for each in pauses] == [1, 2, 4, 8, 15, 15]
    assert room.left("H100", 5.0) == pauses[-1] - 5.0
    assert room.left("L40S", 0.0) == 0.0
    room.freed()
    assert room.left("H100", 0.0) == 0.0
    room.placed("H100")
    assert room.no_room("H100", 0.0, 0.0) == 0.5
