"""A version is deployed only where all its settings are honoured."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_gateway.management.backends import check_clusters, check_version
from nvcf_proto.compute import Cluster
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.ids import new_id
from nvcf_proto.models import DeploymentSpecification, FunctionVersion

PROCESS = {"python": "/usr/bin/python3", "file": "/srv/f.py", "workingDirectory": "/srv"}
MODEL = {"name": "m", "version": "1", "uri": "ngc://m"}
ARTIFACT = {"name": "r", "version": "1", "uri": "ngc://r"}


def version(**fields: Any) -> FunctionVersion:
    ids = {"id": new_id(), "functionId": new_id(), "name": "f", "ncaId": "a", "createdAt": 1}
    return FunctionVersion.from_dict({**ids, **fields})


def cluster(name: str, backend: str, **fields: Any) -> Cluster:
    return Cluster(name, "region-1", 0.0, backend=backend, **fields)


LOCAL, GPUS = cluster("local", "process"), cluster("gpus", "kubernetes", group="big")
ANYWHERE = DeploymentSpecification()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"containerImage": "x"}, "containerImage"),
        ({"helmChart": "https://x/y.tgz", "helmChartServiceName": "s"}, "helmChart"),
        ({"models": [MODEL]}, "models"),
    ],
)
def test_containers_and_charts_need_a_cluster_that_runs_them(fields: dict[str, Any], named: str) -> None:
    wanted = version(**fields)
    check_version(wanted)
    with pytest.raises(InvalidRecord) as caught:
        check_clusters(wanted, [ANYWHERE], [LOCAL])
    assert caught.value.field == named
    assert "'kubernetes'" in caught.value.reason
    assert "local" in caught.value.reason
    check_clusters(wanted, [ANYWHERE], [LOCAL, GPUS])
    check_clusters(wanted, [ANYWHERE], [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("models", [MODEL]),
        ("resources", [ARTIFACT]),
        ("containerArgs", "-v"),
        ("containerEnvironment", [{"key": "A", "value": "b"}]),
        ("health", {}),
        ("healthUri", "/ready"),
        ("inferencePort", 8000),
        ("utilsContainerImage", "GO"),
    ],
)
def test_a_process_honours_no_setting_of_containers(name: str, value: Any) -> None:
    with pytest.raises(InvalidRecord) as caught:
        check_version(version(process=PROCESS, **{name: value}))
    assert caught.value.field == name
    assert "'process'" in caught.value.reason


def test_a_process_needs_a_cluster_that_starts_processes() -> None:
    llm = [{"name": "m", "llmConfig": {"uris": ["/v1/completions"]}}]
    wanted = version(process=PROCESS, functionType="LLM", models=llm)
    check_version(wanted)
    check_clusters(wanted, [ANYWHERE], [LOCAL, GPUS])
    with pytest.raises(InvalidRecord, match="process"):
        check_clusters(wanted, [ANYWHERE], [GPUS])


def test_a_cluster_of_other_accounts_does_not_count() -> None:
    wanted, theirs = version(containerImage="x"), cluster("theirs", "process", authorized_nca_ids=("b",))
    check_clusters(wanted, [ANYWHERE], [theirs])
    with pytest.raises(InvalidRecord, match="permits local,"):
        check_clusters(wanted, [ANYWHERE], [theirs.replace(authorized_nca_ids=("a",), name="local")])


@pytest.mark.parametrize(
    ("specification", "refused"),
    [
        (DeploymentSpecification(clusters=("local",)), True),
        (DeploymentSpecification(clusters=("gpus",)), False),
        (DeploymentSpecification(cluster_group="local"), True),
        (DeploymentSpecification(clusters=("not-seen-yet",)), False),
        (DeploymentSpecification(regions=("region-1",)), False),
        (DeploymentSpecification(regions=("region-2",)), False),
        (DeploymentSpecification(cluster_group="big"), False),
        (DeploymentSpecification(cluster_group="big", clusters=("local",)), False),
    ],
)
def test_only_permitted_clusters_count(specification: DeploymentSpecification, refused: bool) -> None:
    wanted = version(containerImage="x")
    if not refused:
        check_clusters(wanted, [specification], [LOCAL, GPUS])
        return
    with pytest.raises(InvalidRecord, match=r"deploymentSpecifications\[1\]"):
        check_clusters(wanted, [ANYWHERE, specification], [LOCAL, GPUS])
