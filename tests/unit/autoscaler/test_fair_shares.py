"""Claims of versions on short GPUs, over time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.placement.fair_shares import (
    FORGET_AFTER,
    STILL_NEEDED,
    FairShares,
    claims_of,
    possible_clusters,
)
from nvcf_autoscaler.placement.fairness import Claim
from nvcf_autoscaler.placement.place import Capacity, Cluster, Requirement
from nvcf_autoscaler.placement.view import group_instances
from nvcf_autoscaler.policy.decide import Decision
from nvcf_autoscaler.policy.settings import ScalingSettings, SpecificationSettings
from nvcf_autoscaler.policy.state import Desired, PolicyState
from nvcf_proto.models import DeploymentSpecification, Instance
from tests.unit.autoscaler.records import NOW, SPECIFICATIONS, cluster, instance, instance_lists

DEVICES = {"A": {"one": 4}}
ONE = frozenset({"one"})


def claim(version: str, wanted: int, held: int = 0, needed: int | None = None) -> Claim:
    holding = {"one": held} if held else {}
    return Claim(f"{version}/s", ONE, 1, 0, wanted if needed is None else needed, wanted, 0.0, holding)


def record(
    fair_shares: FairShares, now: float, version: str, wanted: int, held: int = 0, **more: int
) -> None:
    fair_shares.record(now, version, {"s": "A"}, {"s": claim(version, wanted, held, **more)})


def test_nobody_is_bounded_while_there_is_enough_or_nobody_to_share_with() -> None:
    fair_shares = FairShares()
    record(fair_shares, NOW, "a", 9, 4)
    assert fair_shares.of(NOW, "a", DEVICES) == {}
    record(fair_shares, NOW, "b", 0)
    assert fair_shares.of(NOW, "a", DEVICES) == {}
    record(fair_shares, NOW, "a", 4, 4)
    record(fair_shares, NOW, "b", 1, 1)
    assert fair_shares.of(NOW, "a", DEVICES) == {}


def test_what_is_short_is_shared_until_the_other_wants_nothing_or_is_gone() -> None:
    fair_shares = FairShares()
    record(fair_shares, NOW, "a", 9, 4)
    record(fair_shares, NOW, "b", 1)
    assert fair_shares.of(NOW, "a", DEVICES) == {"s": {"one": 3}}
    assert fair_shares.of(NOW, "b", DEVICES) == {"s": {"one": 1}}
    assert fair_shares.of(NOW, "c", DEVICES) == {}
    record(fair_shares, NOW + FORGET_AFTER, "a", 9, 4)
    assert fair_shares.of(NOW + FORGET_AFTER, "a", DEVICES) == {}, "the other claim is too old"
    record(fair_shares, NOW + FORGET_AFTER, "b", 1)
    fair_shares.drop("b")
    assert fair_shares.of(NOW + FORGET_AFTER, "a", DEVICES) == {}


def test_a_version_with_a_moment_of_rest_is_not_pushed_out() -> None:
    fair_shares = FairShares()
    record(fair_shares, NOW, "calm", 2, 2, needed=2)
    record(fair_shares, NOW + 1, "calm", 2, 2, needed=0)
    record(fair_shares, NOW + 1, "eager", 9, 2)
    assert fair_shares.of(NOW + 1, "calm", DEVICES) == {"s": {"one": 2}}
    later = NOW + 2 + STILL_NEEDED
    record(fair_shares, later, "calm", 2, 2, needed=0)
    record(fair_shares, later, "eager", 9, 2)
    assert fair_shares.of(later, "calm", DEVICES) == {"s": {}}


def decision(*counts: int, missing: int = 0, needed: int = 0) -> Decision:
    desired = tuple(Desired(key, count) for key, count in zip(SPECIFICATIONS, counts, strict=False))
    return Decision(desired, PolicyState(), 0.0, missing, (), needed)


@given(instance_lists(), st.integers(0, 4), st.integers(0, 4), st.integers(0, 9), st.integers(0, 9))
def test_claims_keep_to_the_deployment_and_count_every_instance_once(
    instances: list[Instance], first: int, second: int, missing: int, needed: int
) -> None:
    kinds = {
        key: DeploymentSpecification(gpu=key.split("-")[1], max_instances=5, min_instances=0)
        for key in SPECIFICATIONS
    }
    settings = ScalingSettings(tuple(SpecificationSettings(key, 0, 5) for key in SPECIFICATIONS))
    requirements = {key: Requirement(key.split("-")[1], "process") for key in SPECIFICATIONS}
    groups = group_instances(NOW, instances, requirements, [cluster("one"), cluster("two")])
    anywhere = {key: [cluster()] for key in SPECIFICATIONS}
    chosen = decision(first, second, missing=missing, needed=needed)
    claims = claims_of("v", kinds, settings, groups, chosen, anywhere, 60.0)
    for key, each in claims.items():
        assert each.least <= each.needed <= each.wanted <= 5
        assert each.held >= len(groups.current[key])
    kinds_held = {spec.gpu for spec in kinds.values()}
    counted = len(groups.up) + sum(one.gpu in kinds_held for one in groups.stale)
    assert sum(each.held for each in claims.values()) == counted


def test_only_clusters_that_could_hold_it_count() -> None:
    clusters = [cluster("one", free=0), cluster("two", gpu="B"), cluster("three")]
    gone = Cluster("four", "local", NOW, clusters[0].capacity, healthy=False)
    found = possible_clusters(NOW, Requirement("A", "process"), [*clusters, gone], {"three"})
    assert [each.id for each in found] == ["one"], "a full one counts: what it has is what is shared"


@pytest.mark.parametrize("count_of_others", [1, 9])
def test_a_moment_without_the_cluster_costs_nobody_its_instances(count_of_others: int) -> None:
    """A claim of that moment is still there when the cluster is heard again, and another version waits."""
    (key, *_) = SPECIFICATIONS
    kinds = {key: DeploymentSpecification(gpu="A", max_instances=2, min_instances=2)}
    settings = ScalingSettings((SpecificationSettings(key, 2, 2),))
    groups = group_instances(
        NOW, [instance(1), instance(2)], {key: Requirement("A", "process")}, [cluster(healthy=False)]
    )
    fair_shares = FairShares()
    found = claims_of("a", kinds, settings, groups, decision(2), {key: []}, 60.0)
    fair_shares.record(NOW, "a", {key: "A"}, found)
    record(fair_shares, NOW, "b", count_of_others)
    assert fair_shares.of(NOW + 1, "a", DEVICES) == {key: {"one": 2}}
    assert fair_shares.of(NOW + 1, "b", DEVICES) == {"s": {"one": min(count_of_others, 2)}}


def test_an_instance_of_before_counts_for_its_successor() -> None:
    kinds = {SPECIFICATIONS[0]: DeploymentSpecification(gpu="A", max_instances=3, min_instances=1)}
    settings = ScalingSettings((SpecificationSettings(SPECIFICATIONS[0], 1, 3),))
    requirements = {SPECIFICATIONS[0]: Requirement("A", "process")}
    old = instance(1, specification_id="0-A-process-2x0")
    groups = group_instances(NOW, [old, instance(2)], requirements, [cluster()])
    (only,) = claims_of(
        "v", kinds, settings, groups, decision(2), {SPECIFICATIONS[0]: [cluster()]}, 60.0
    ).values()
    assert (only.held, only.least, only.wanted, only.time_slice) == (2, 1, 2, 60.0)


def test_the_instance_type_says_how_many_gpus_a_claim_is_for() -> None:
    whole = Cluster("one", "local", NOW, (Capacity("A", "process", 16, 16, gpus_per_instance=8),))
    kinds = {SPECIFICATIONS[0]: DeploymentSpecification(gpu="A")}
    settings = ScalingSettings((SpecificationSettings(SPECIFICATIONS[0], 1, 3),))
    groups = group_instances(NOW, [], {SPECIFICATIONS[0]: Requirement("A", "process")}, [whole])
    (only,) = claims_of(
        "v", kinds, settings, groups, decision(1), {SPECIFICATIONS[0]: [whole]}, 60.0
    ).values()
    assert (only.devices, only.clusters) == (8, frozenset({"one"}))
