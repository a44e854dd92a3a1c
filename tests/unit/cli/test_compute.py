"""Scaling options, and how clusters and instances are shown."""

from pathlib import Path
from typing import Any

import pytest

from nvcf_cli.clusters import cluster_state, find_cluster, joined, pools_text, types_text
from nvcf_cli.commands.calls import _log_paths
from nvcf_cli.commands.compute import gpu_text
from nvcf_cli.deploying import split_reason
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.local.state import Installation
from nvcf_cli.scale import Scale, bounds, gpus
from nvcf_proto.compute import Cluster, GpuPool
from nvcf_proto.models import Deployment


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, None), (1, 1)),
        ((3, None, None), (3, 3)),
        ((0, None, None), (0, 1)),
        ((None, 0, None), (0, 1)),
        ((None, 0, 4), (0, 4)),
        ((None, 2, None), (2, 2)),
        ((None, None, 4), (1, 4)),
    ],
)
def test_bounds(given: tuple[int | None, int | None, int | None], expected: tuple[int, int]) -> None:
    assert bounds(*given) == expected


def test_contradictions_are_told() -> None:
    with pytest.raises(UsageError, match="both bounds"):
        bounds(2, 1, None)
    with pytest.raises(UsageError, match="below"):
        bounds(None, 5, 4)
    with pytest.raises(UsageError, match="nvcf clusters"):
        gpus(None, 2)


def test_gpus() -> None:
    assert gpus(None, None) == ("CPU", 0)
    assert gpus("SIM", None) == ("SIM", 1)
    assert gpus("SIM", 4) == ("SIM", 4)


def read(scale: Scale) -> Deployment:
    """As a gateway would read the body."""
    version = "11111111-1111-4111-8111-111111111111"
    body = scale.deployment()
    return Deployment.from_dict(
        {**body, "functionVersionId": version, "functionId": version, "createdAt": 1.0}
    )


def test_a_deployment_says_what_the_platform_understands() -> None:
    plain = read(Scale())
    (specification,) = plain.specifications
    assert (specification.gpu, specification.min_instances, specification.max_instances) == ("CPU", 1, 1)
    assert plain.scaling is None
    full = Scale(
        minimum=0,
        maximum=4,
        concurrency=2,
        gpu="SIM",
        gpus_per_instance=2,
        clusters=("local-2",),
        regions=("local",),
        cluster_group="g",
        scale_to_zero_delay=30,
        target_utilisation=0.7,
        wait_slo=2,
        keep_warm=1,
        profile="economy",
        wait_price=2.5,
    )
    deployment = read(full)
    (specification,) = deployment.specifications
    assert (specification.gpus_per_instance, specification.clusters) == (2, ("local-2",))
    assert (specification.cluster_group, specification.max_request_concurrency) == ("g", 2)
    assert deployment.scaling is not None
    assert deployment.scaling.scale_to_zero_delay == 30
    assert deployment.scaling.keep_warm == 1
    assert (deployment.scaling.profile, deployment.scaling.wait_price) == ("economy", 2.5)
    assert (full.text, Scale().text, Scale(2, 2).text) == ("0 to 4 instances", "1 instance", "2 instances")


def cluster(heartbeat_at: float, **more: Any) -> dict[str, Any]:
    pools = (GpuPool("CPU", "process", 9, 9), GpuPool("SIM", "process", 4, 1))
    return Cluster("c", "r", heartbeat_at, pools, **more).to_dict()


def test_a_clusters_state_is_one_word() -> None:
    assert cluster_state(cluster(100.0), 105.0) == "live"
    assert cluster_state(cluster(100.0, draining=True), 105.0) == "draining"
    assert cluster_state(cluster(100.0, cordoned=True), 105.0) == "cordoned"
    assert cluster_state({**cluster(100.0), "maintenance": "CordonAndDrain"}, 105.0) == "draining"
    assert cluster_state(cluster(100.0, healthy=False), 105.0) == "unhealthy"
    assert cluster_state(cluster(100.0), 111.0) == "silent"
    assert cluster_state(cluster(100.0, heartbeat_seconds=300.0), 650.0) == "live"
    assert cluster_state({**cluster(0), "heartbeatAt": "1970-01-01T00:01:40Z"}, 105.0) == "live"
    for nonsense in ({}, {"heartbeatAt": "soon"}, {"heartbeatAt": None}):
        assert cluster_state(nonsense, 105.0) == "registered"


def test_clusters_are_found_by_name_or_id_and_what_is_live_wins() -> None:
    registered = [
        {"clusterId": "1", "clusterName": "lab", "region": "a"},
        {"clusterId": "2", "clusterName": "x"},
    ]
    both = joined(registered, [{"clusterId": "1", "clusterName": "lab", "region": "b", "backend": None}])
    assert [each["clusterName"] for each in both] == ["lab", "x"]
    assert find_cluster(both, "lab") == find_cluster(both, "1") == {**registered[0], "region": "b"}
    with pytest.raises(CliError, match="there are: lab, x"):
        find_cluster(both, "y")
    with pytest.raises(CliError, match="nvcf cluster register"):
        find_cluster([], "y")
    with pytest.raises(CliError, match="ids 1, 3"):
        find_cluster([*both, {"clusterId": "3", "clusterName": "lab"}], "lab")


def test_free_capacity_in_words() -> None:
    assert pools_text(cluster(0)) == "CPU 9/9, SIM 1/4"
    several = {"pools": [GpuPool("A", "small", 2, 1).to_dict(), GpuPool("A", "big", 2, 0).to_dict()]}
    assert pools_text(several) == "A small 1/2, A big 0/2"
    types = [
        GpuPool("A", "process", 4, 3),
        GpuPool("A", "NCP.GPU.A_2x", 4, 3, 2),
        GpuPool("B", "process", 1, 1),
    ]
    assert pools_text({"pools": [each.to_dict() for each in types]}) == "A 3/4, B 1/1"
    assert types_text({"pools": [each.to_dict() for each in types]}) == [
        "A: process, NCP.GPU.A_2x",
        "B: process",
    ]
    assert pools_text({}) == ""
    assert gpu_text({"gpu": "SIM", "visibleDevices": "0,1"}) == "SIM 0,1"
    assert gpu_text({"gpu": "CPU"}) == "CPU"


def test_reasons_with_and_without_a_category() -> None:
    assert split_reason("out-of-memory: too much: really") == ("out-of-memory", "too much: really")
    assert split_reason("exit code 1\nValueError: no") == ("", "exit code 1\nValueError: no")
    assert split_reason("") == ("", "")


def test_logs_of_live_instances_come_first_then_the_last_of_all_clusters(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    assert installation.cluster("local") == tmp_path
    assert installation.cluster("local-2") == tmp_path / "clusters" / "local-2"
    old = installation.cluster("local-2") / "logs" / "hello" / "old.log"
    old.parent.mkdir(parents=True)
    old.write_text("x")
    folders = installation.function_logs("hello")
    live = {"instanceId": "i", "state": "RUNNING", "logPath": str(old)}
    gone = {"instanceId": "j", "state": "FAILED", "logPath": str(tmp_path / "gone.log")}
    assert _log_paths([live, gone], folders, None) == {"i": old}
    assert _log_paths([gone], folders, None) == {"old": old}
    assert _log_paths([], folders, "other") == {}
    with pytest.raises(CliError, match="machine"):
        _log_paths([{**gone, "state": "RUNNING"}], folders, None)
