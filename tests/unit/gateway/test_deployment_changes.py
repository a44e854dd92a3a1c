"""What becomes of a deployment that is changed as a whole or in parts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_gateway.management.bodies import DeploymentCreation
from nvcf_gateway.management.deployment_bodies import SpecificationUpdate
from nvcf_gateway.management.deployment_changes import completed, deployment_of, patched, place_of
from nvcf_gateway.management.shown import deployment_shown, health_info, instance_shown
from nvcf_proto.compute import Cluster
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.ids import new_id
from nvcf_proto.models import Deployment, DeploymentSpecification, FunctionVersion, Instance, InstanceState
from nvcf_proto.models.deployments import gpu_specification_id, specifications_of

VERSION = FunctionVersion(new_id(), new_id(), "f", "account", 1.0, container_image="x")
UP = {"factor": 2.0, "threshold": 80, "stickiness": {"size": "PT10M", "threshold": "PT5M"}}
CHART = {"configuration": {"replicas": 2}, "helmValidationPolicy": {"name": "Default"}}


def made(*specifications: dict[str, Any], **fields: Any) -> Deployment:
    body = {"deploymentSpecifications": list(specifications), **fields}
    return deployment_of(VERSION, DeploymentCreation.from_dict(body), 100.0)


def put(before: Deployment, *specifications: dict[str, Any], **fields: Any) -> Deployment:
    members = completed({"deploymentSpecifications": list(specifications), **fields}, before)
    return deployment_of(VERSION, DeploymentCreation.from_dict(members), 200.0, before)


def ids(deployment: Deployment) -> list[str]:
    return [gpu_specification_id(deployment, place) for place in range(len(deployment.specifications))]


def earlier(*specifications: DeploymentSpecification) -> Deployment:
    """A record of a release without ids."""
    return Deployment(VERSION.id, VERSION.function_id, 50.0, specifications)


def test_a_new_deployment_has_ids_and_times() -> None:
    first, second = made({"gpu": "A"}, {"gpu": "B"}), made({"gpu": "A"})
    assert len({*ids(first), *ids(second)}) == 3
    assert first.deployment_id != second.deployment_id
    assert deployment_shown(first)["lastUpdatedAt"] == deployment_shown(first)["createdAt"]
    assert Deployment.from_json(first.to_json()) == first


def test_a_deployment_of_an_earlier_release_has_ids_that_stay() -> None:
    before = earlier(DeploymentSpecification("A"), DeploymentSpecification("B"))
    shown = deployment_shown(before)
    after = put(before, {"gpu": "A", "maxInstances": 5}, {"gpu": "B"})
    assert deployment_shown(after)["deploymentId"] == shown["deploymentId"]
    assert ids(after) == [each["gpuSpecificationId"] for each in shown["deploymentSpecifications"]]
    assert list(specifications_of(after)) == list(specifications_of(before)), "no instance is replaced"


def test_a_put_without_ids_replaces_the_specifications_and_keeps_what_older_clients_do_not_know() -> None:
    before = made(
        {"gpu": "A", "clusters": ["one"], **CHART, "autoscalingConfiguration": {"scaleUpDetails": UP}},
        {"gpu": "B", "preferredOrder": 3, "backend": "group"},
    )
    after = put(before, {"gpu": "B", "maxInstances": 2}, {"gpu": "A", "minInstances": 0})
    assert ids(after) == list(reversed(ids(before)))
    second, first = after.specifications
    assert (first.clusters, first.configuration, first.min_instances) == ((), {"replicas": 2}, 0)
    assert first.autoscaling == before.specifications[0].autoscaling
    assert (second.preferred_order, second.backend, second.max_instances) == (3, "group", 2)
    assert (after.created_at, after.last_updated_at) == (100.0, 200.0)


def test_null_takes_a_member_away() -> None:
    before = made({"gpu": "A", "preferredOrder": 3})
    assert put(before, {"gpu": "A", "preferredOrder": None}).specifications[0].preferred_order is None


def test_counts_of_one_specification_leave_the_others_alone() -> None:
    before = made({"gpu": "A", "maxInstances": 3, "regions": ["r"]}, {"gpu": "B"}, keepQueued=False)
    counts = {"minInstances": 2, "maxInstances": 4, "maxRequestConcurrency": 16}
    after = put(before, {"gpuSpecificationId": ids(before)[0].upper(), "gpu": "A", **counts})
    assert ids(after) == ids(before)
    first, second = after.specifications
    assert (first.min_instances, first.max_instances, first.max_request_concurrency) == (2, 4, 16)
    assert first.regions == ("r",)
    assert second == before.specifications[1]
    assert not after.keep_queued


def test_what_was_shown_can_be_put_again() -> None:
    before = made({"gpu": "A", "backend": "group", **CHART}, {"gpu": "B", "attributes": ["X"]})
    shown = deployment_shown(before)["deploymentSpecifications"]
    assert put(before, *shown).specifications == before.specifications
    assert put(before, shown[1]).specifications == before.specifications[1:]


def test_another_kind_of_instance_is_another_specification() -> None:
    before = made({"gpu": "A", **CHART})
    shown = deployment_shown(before)["deploymentSpecifications"][0]
    for change in ({"gpu": "B"}, {"instanceType": "big"}, {"configuration": {"replicas": 3}}):
        after = put(before, {**shown, **change})
        assert ids(after) != ids(before), change
        assert specifications_of(after).keys() != specifications_of(before).keys(), change
    assert ids(put(before, {**shown, "maxInstances": 9})) == ids(before)


def test_clusters_take_the_place_of_a_kept_group() -> None:
    before = made({"gpu": "A", "backend": "group"})
    after = put(before, {"gpu": "A", "clusters": ["one"]})
    assert (after.specifications[0].backend, after.specifications[0].clusters) == (None, ("one",))


@pytest.mark.parametrize("name", ["x", 5, "6f1d0a52-0d6c-4a0e-9c3b-2f7f8f2b1c02"])
def test_a_specification_that_there_is_not(name: Any) -> None:
    with pytest.raises(InvalidRecord, match=r"deploymentSpecifications\[0\].gpuSpecificationId"):
        put(made({}), {"gpuSpecificationId": name})


def test_a_specification_that_is_named_twice() -> None:
    before = made({})
    entry = {"gpuSpecificationId": ids(before)[0]}
    with pytest.raises(InvalidRecord, match=r"deploymentSpecifications\[1\].gpuSpecificationId"):
        put(before, entry, entry)


@pytest.mark.parametrize("entries", [None, 5, "x", [1], []])
def test_bodies_that_are_none_are_left_to_validation(entries: Any) -> None:
    with pytest.raises(InvalidRecord, match="deploymentSpecifications"):
        DeploymentCreation.from_dict(completed({"deploymentSpecifications": entries}, made({})))


def patch(deployment: Deployment, place: int = 0, **members: Any) -> Deployment:
    return patched(deployment, place, SpecificationUpdate.from_dict(members), 300.0)


def test_a_patch_changes_one_specification() -> None:
    before = made({"gpu": "A"}, {"gpu": "B"})
    after = patch(before, 1, minInstances=0, maxInstances=7, autoscalingConfiguration={"scaleUpDetails": UP})
    assert after.specifications[0] == before.specifications[0]
    changed = after.specifications[1]
    assert (changed.min_instances, changed.max_instances) == (0, 7)
    assert changed.autoscaling is not None
    assert changed.autoscaling.scale_up is not None
    assert ids(after) == ids(before)
    assert (after.created_at, after.last_updated_at) == (100.0, 300.0)
    assert patch(after, 1, minInstances=1).specifications[1].autoscaling == changed.autoscaling
    gone = patch(after, 1, autoscalingConfigurationPolicy="PLATFORM_CONFIGURATION")
    assert gone.specifications[1].autoscaling is None
    assert place_of(after, ids(after)[1]) == 1
    assert place_of(after, new_id()) is None


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({}, "minInstances"),
        ({"minInstances": 5}, "maxInstances"),
        ({"maxInstances": 0}, "maxInstances"),
        ({"gpu": "B"}, "gpu"),
        ({"maxRequestConcurrency": 2}, "maxRequestConcurrency"),
        ({"surprise": 1}, "surprise"),
        ({"autoscalingConfigurationPolicy": "OURS"}, "autoscalingConfigurationPolicy"),
        (
            {"autoscalingConfigurationPolicy": "PLATFORM_CONFIGURATION", "autoscalingConfiguration": {}},
            "autoscalingConfiguration",
        ),
        (
            {"autoscalingConfiguration": {"scaleUpDetails": {"factor": 0.5, "threshold": 1}}},
            "autoscalingConfiguration.scaleUpDetails.factor",
        ),
        (
            {"autoscalingConfiguration": {"scaleDownDetails": {"factor": 1, "threshold": 1}}},
            "autoscalingConfiguration.scaleDownDetails.factor",
        ),
    ],
)
def test_patches_that_are_refused(members: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        patch(made({"maxInstances": 3}), **members)
    assert caught.value.field == field


def test_a_deployment_has_one_rule_for_its_scaling() -> None:
    rule = {"factor": 2, "threshold": 80}
    scaling = {"scaleUpDetails": rule, "scaleDownDetails": {"factor": 0.5, "threshold": 20}}
    spec: dict[str, Any] = {"autoscalingConfiguration": {"scaleUpDetails": rule}}
    with pytest.raises(InvalidRecord) as caught:
        made(spec, scaling=scaling)
    assert caught.value.field == "deploymentSpecifications[0].autoscalingConfiguration"
    with pytest.raises(InvalidRecord) as caught:
        patch(made({}, scaling=scaling), **spec)
    assert caught.value.field == "autoscalingConfiguration"


def test_failures_and_instances_are_shown_with_their_specification() -> None:
    deployment = made({"gpu": "A", "instanceType": "big"})
    key = next(iter(specifications_of(deployment)))
    one = Instance(
        new_id(), VERSION.function_id, VERSION.id, "c1", InstanceState.FAILED, 2.0, 1.0,
        reason="crash: 1", specification_id=key, gpu="A",
    )  # fmt: skip
    stray = one.replace(id=new_id(), cluster_id="c2", updated_at=3.0, specification_id="gone", gpu=None)
    fine = one.replace(id=new_id(), state=InstanceState.RUNNING)
    clusters = {"c1": Cluster("c1", "r", 0.0, group="group")}
    assert health_info(deployment, [one, stray, fine], clusters.get) == [
        {"icmsRequestId": stray.id, "backend": "c2", "error": "crash: 1"},
        {
            "icmsRequestId": one.id,
            "gpu": "A",
            "backend": "group",
            "instanceType": "big",
            "error": "crash: 1",
        },
    ]
    assert instance_shown(one, deployment)["gpuSpecificationId"] == ids(deployment)[0]
    assert instance_shown(stray, deployment)["gpuSpecificationId"] == "gone"
    assert instance_shown(one, None)["gpuSpecificationId"] == key


entries = st.fixed_dictionaries(
    {"gpu": st.sampled_from(["A", "B"])},
    optional={
        "minInstances": st.integers(0, 2),
        "maxInstances": st.integers(2, 5),
        "backend": st.sampled_from([None, "g"]),
        "preferredOrder": st.integers(1, 3),
    },
)


@given(st.lists(entries, min_size=1, max_size=4), st.lists(entries, min_size=1, max_size=4))
def test_ids_are_unique_and_those_kept_are_of_the_same_kind(
    first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> None:
    before = made(*first)
    after = put(before, *second)
    assert len(set(ids(after))) == len(second)
    kinds = dict(zip(ids(before), (each.gpu for each in before.specifications), strict=True))
    for name, spec in zip(ids(after), after.specifications, strict=True):
        assert kinds.get(name, spec.gpu) == spec.gpu
    kept = sum(name in kinds for name in ids(after))
    assert kept == sum(
        min(sum(each["gpu"] == gpu for each in first), sum(each["gpu"] == gpu for each in second))
        for gpu in "AB"
    )
