"""GPUs, groups and their use, as accounts see them."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_gateway.management.accounts import account_path
from nvcf_gateway.management.gpus import cluster_groups, gpu_usage, supported_gpus
from nvcf_proto.compute import Cluster, GpuPool
from nvcf_proto.ids import new_id
from nvcf_proto.models import Deployment, DeploymentSpecification


def cluster(name: str, group: str | None, *kinds: tuple[str, str], region: str = "r") -> Cluster:
    pools = tuple(GpuPool(gpu, kind, 4, 4) for gpu, kind in kinds)
    return Cluster(name, region, 0.0, pools, group)


CLUSTERS = [
    cluster("b", "g", ("A", "a1"), ("A", "a2")),
    cluster("a", "g", ("A", "a1"), ("B", "b1"), region="s"),
    cluster("c", None, ("B", "b1")),
]


def deployment(*specifications: DeploymentSpecification) -> Deployment:
    return Deployment(new_id(), new_id(), 1.0, specifications)


def spec(gpu: str, kind: str, least: int, most: int, **fields: Any) -> DeploymentSpecification:
    return DeploymentSpecification(gpu, kind, least, most, **fields)


def test_each_gpu_of_each_group_is_listed_once() -> None:
    assert supported_gpus(CLUSTERS) == [
        {"gpu": "A", "backend": "g"},
        {"gpu": "B", "backend": "c"},
        {"gpu": "B", "backend": "g"},
    ]


def test_groups_have_all_of_their_clusters_and_ids_that_stay() -> None:
    alone, group = cluster_groups(CLUSTERS, "account")
    assert (alone["name"], group["name"]) == ("c", "g")
    assert [each["id"] for each in group["clusters"]] == ["a", "b"]
    assert group["gpus"] == [
        {"name": "A", "instanceTypes": [{"name": "a1"}, {"name": "a2"}]},
        {"name": "B", "instanceTypes": [{"name": "b1"}]},
    ]
    assert group["id"] == cluster_groups(CLUSTERS[:1], "other")[0]["id"] != alone["id"]


def test_groups_have_the_ids_and_clusters_the_names_of_their_registration() -> None:
    one = cluster("id-1", "g", ("A", "a1")).replace(name="lab", group_id="group-1", nca_id="owner")
    other = one.replace(
        id="id-2", name="lab", group_id="group-2", nca_id="else", authorized_nca_ids=("x", "y")
    )
    first, second = cluster_groups([one, other], "x")
    assert (first["id"], first["ncaId"], first["authorizedNcaIds"]) == ("group-1", "owner", ["*"])
    assert first["clusters"] == [{"id": "id-1", "name": "lab", "region": "r"}]
    assert (second["id"], second["authorizedNcaIds"]) == ("group-2", ["x"]), "nobody reads who else may"
    assert cluster_groups([other], "else")[0]["authorizedNcaIds"] == ["x", "y"]


@pytest.mark.parametrize(
    ("account", "expected"), [("owner", True), ("guest", True), ("stranger", False), ("", False)]
)
def test_a_cluster_serves_its_owner_and_whom_it_authorizes(account: str, expected: bool) -> None:
    one = cluster("a", None).replace(nca_id="owner", authorized_nca_ids=("guest",))
    assert one.serves(account) is expected
    assert one.replace(authorized_nca_ids=("*",)).serves(account)


def test_use_is_added_up_by_kind_and_by_cluster() -> None:
    found = gpu_usage(
        [
            deployment(spec("A", "a1", 1, 2, clusters=("a",)), spec("B", "b1", 0, 5)),
            deployment(spec("A", "a1", 2, 3, regions=("r",))),
        ],
        CLUSTERS,
    )
    first, second = found
    assert (first["gpu"], first["currentMinUsage"], first["currentMaxUsage"]) == ("A", 3, 5)
    assert [(each["cluster"], each["currentMaxUsage"]) for each in first["placements"]] == [
        ("a", 2),
        ("b", 3),
    ]
    assert [(each["clusterGroup"], each["region"]) for each in second["placements"]] == [
        ("g", "s"),
        ("c", "r"),
    ]
    assert gpu_usage([], CLUSTERS) == []
    assert gpu_usage([deployment(spec("C", "c1", 1, 1))], CLUSTERS)[0]["placements"] == []


def test_routes_below_an_account() -> None:
    assert account_path("/v2/nvcf/functions/{function_id}") == (
        "/v2/nvcf/accounts/{nca_id}/functions/{function_id}"
    )
    for path in ("/v2/nvcf/keys", "/v2/nvcf/accounts", "/v2/nvcf/pexec/functions/{function_id}", "/health"):
        assert account_path(path) is None
