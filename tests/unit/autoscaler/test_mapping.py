"""Deployments as the policy and placement see them: order, places and rules of their specifications."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_autoscaler.controller.mapping import PLATFORM_DOWN, clusters_of, requirement_of, settings_of
from nvcf_autoscaler.policy.settings import ScalingDetails, Stickiness
from nvcf_proto.compute import Cluster, GpuPool
from nvcf_proto.models import Deployment, DeploymentSpecification
from nvcf_proto.models.deployments import specifications_of
from tests.unit.autoscaler.records import VERSION

UP = {"factor": 1.5, "threshold": 60, "stickiness": {"size": "PT10M", "threshold": "PT5M"}}


def deployment(*specifications: dict[str, Any], **fields: Any) -> Deployment:
    ids = {"functionVersionId": VERSION, "functionId": VERSION, "createdAt": 1}
    return Deployment.from_dict({**ids, "deploymentSpecifications": list(specifications), **fields})


def test_specifications_are_in_preferred_order_and_keep_their_ids() -> None:
    plain = [{"gpu": "A"}, {"gpu": "B"}, {"gpu": "C"}, {"gpu": "D"}]
    ordered = [{**each, "preferredOrder": place} for each, place in zip(plain, (9, 1, None, 1), strict=True)]
    before, after = specifications_of(deployment(*plain)), specifications_of(deployment(*ordered))
    assert [each.gpu for each in after.values()] == ["B", "D", "A", "C"]
    assert {key: each.gpu for key, each in before.items()} == {key: each.gpu for key, each in after.items()}
    assert [each.id for each in settings_of(deployment(*ordered)).specifications] == list(after)


def test_a_chart_with_other_values_is_another_specification() -> None:
    keys = {
        next(iter(specifications_of(deployment({"configuration": values}))))
        for values in ({}, {"a": 1}, {"a": 2}, {"b": {"c": [1]}})
    }
    assert len(keys) == 4
    first, second = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert specifications_of(deployment({"configuration": first})).keys() == (
        specifications_of(deployment({"configuration": second})).keys()
    )


@pytest.mark.parametrize(
    ("members", "clusters", "groups", "attributes"),
    [
        ({}, (), (), set()),
        ({"backend": "g"}, (), ("g",), set()),
        ({"clusterGroup": "g", "clusters": ["a", "b"]}, ("a", "b"), ("g",), set()),
        ({"backend": "g", "availabilityZones": ["z"]}, ("z",), ("g",), set()),
        ({"attributes": {"tier": "gold"}}, (), (), {"tier=gold"}),
        ({"attributes": ["HIPAA"]}, (), (), {"HIPAA=true"}),
        (
            {"cpuArch": "arm64", "os": "ubuntu", "gpuMemory": "79Gi", "attributes": ["X"]},
            (),
            (),
            {"cpuArch=arm64", "os=ubuntu", "gpuMemory=79Gi", "X=true"},
        ),
    ],
)
def test_requirements(
    members: dict[str, Any], clusters: tuple[str, ...], groups: tuple[str, ...], attributes: set[str]
) -> None:
    found = requirement_of(DeploymentSpecification.from_dict(members))
    assert (found.clusters, found.groups, found.attributes) == (clusters, groups, frozenset(attributes))


def test_filters_of_nodes_are_met_by_what_the_agent_has_registered() -> None:
    """Each type has nodes of its own; what people say of the whole cluster wins."""
    pools = (
        GpuPool("H100", "one", 8, 8, attributes={"cpuArch": "amd64", "systemMemory": "64Gi"}),
        GpuPool("H100", "two", 8, 8, attributes={"cpuArch": "amd64", "systemMemory": "128Gi", "os": "linux"}),
    )
    record = Cluster("id", "eu", 0.0, pools, attributes={"os": "ubuntu"}, name="lab")
    (found,) = clusters_of([(record, 0.0)])

    def refusal(kind: str, **filters: str) -> str | None:
        spec = DeploymentSpecification("H100", kind, **filters)  # type: ignore[arg-type]
        return requirement_of(spec).refusal(found, 0.0)

    assert refusal("one", cpu_arch="amd64", system_memory="64Gi", os="ubuntu") is None
    assert refusal("two", system_memory="128Gi") is None
    assert refusal("two", system_memory="64Gi") == "lacks systemMemory=64Gi"
    assert refusal("three", cpu_arch="amd64") == "no three with H100, only one, two", "not: lacks cpuArch"
    assert refusal("two", cpu_arch="arm64", os="linux") == "lacks cpuArch=arm64, os=linux"


def test_a_cluster_without_a_group_is_a_group_of_its_own() -> None:
    (found,) = clusters_of([(Cluster("id", "eu", 0.0, (GpuPool("A", "a", 1, 1),), name="lab"), 0.0)])
    spec = DeploymentSpecification("A", "a", backend="lab")
    assert requirement_of(spec).refusal(found, 0.0) is None


def test_the_autoscaling_configuration_is_the_rule_of_the_version() -> None:
    found = settings_of(deployment({}, {"autoscalingConfiguration": {"scaleUpDetails": UP}}))
    assert found.scale_up == ScalingDetails(1.5, 60, Stickiness(600.0, 300.0))
    assert found.scale_down == PLATFORM_DOWN, "what is left out is the platform's"
    assert settings_of(deployment({"autoscalingConfiguration": {}})).scale_up is None


def test_the_first_configuration_in_preferred_order_holds() -> None:
    rules = [{"autoscalingConfiguration": {"scaleUpDetails": {**UP, "factor": each}}} for each in (2.0, 3.0)]
    last, first = {**rules[0], "preferredOrder": 2}, {**rules[1], "preferredOrder": 1}
    found = settings_of(deployment(last, first)).scale_up
    assert found is not None
    assert found.factor == 3.0
