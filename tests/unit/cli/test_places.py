"""Where `nvcf deploy` says a deployment can run, and the instance type that it takes by itself."""

import pytest

from nvcf_cli.api import Json
from nvcf_cli.places import no_place, usual_type
from nvcf_cli.scale import Scale

TYPES = ["process", "ON-PREM.GPU.SIM_1x", "ON-PREM.GPU.SIM_2x"]
GPUS: list[Json] = [
    {"name": "SIM", "instanceTypes": [{"name": name} for name in TYPES]},
    {"name": "CPU", "instanceTypes": [{"name": "process"}]},
    {"name": "H100", "instanceTypes": [{"name": "ON-PREM.GPU.H100_1x"}, {"name": "ON-PREM.GPU.H100_8x"}]},
]
GROUPS: list[Json] = [{"name": "one", "gpus": GPUS[:1]}, {"name": "two", "gpus": GPUS[1:]}]


@pytest.mark.parametrize(
    ("gpu", "instance_type", "expected"),
    [
        ("SIM", "process", None),
        ("CPU", "process", None),
        ("X", "process", "no cluster has the GPU X now, only CPU, H100, SIM: calls wait until there is one"),
        (
            "SIM",
            "NCP.GPU.X_1x",
            "no cluster has the instance type NCP.GPU.X_1x for SIM now, only ON-PREM.GPU.SIM_1x, "
            "ON-PREM.GPU.SIM_2x, process: "
            "calls wait until there is one",
        ),
    ],
)
def test_a_deployment_that_nobody_can_run_is_told_so(
    gpu: str, instance_type: str, expected: str | None
) -> None:
    assert no_place(Scale(gpu=gpu, instance_type=instance_type), GROUPS) == expected
    assert no_place(Scale(), []) == "there is no cluster now: calls wait until there is one"
    assert no_place(Scale(), None) is None


@pytest.mark.parametrize(
    ("gpu", "count", "is_image", "expected"),
    [
        ("CPU", 0, False, "process"),
        ("CPU", 0, True, "process"),
        ("SIM", 1, False, "process"),
        ("SIM", 2, True, "ON-PREM.GPU.SIM_2x"),
        ("H100", 1, False, "ON-PREM.GPU.H100_1x"),
        ("H100", 8, True, "ON-PREM.GPU.H100_8x"),
        ("H100", 3, True, "ON-PREM.GPU.H100_1x"),
        ("unknown", 1, True, "process"),
    ],
)
def test_a_deployment_that_names_no_type_gets_a_fitting_one(
    gpu: str, count: int, is_image: bool, expected: str
) -> None:
    assert usual_type(Scale(gpu=gpu, gpus_per_instance=count), GROUPS, is_image=is_image) == expected


def test_without_a_list_of_clusters_a_file_is_a_process() -> None:
    assert usual_type(Scale(), None, is_image=False) == "process"
