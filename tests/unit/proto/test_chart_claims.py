"""Volumes that a chart claims: any, but none of the cluster by its name."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_proto.charts.policy import Policy, PolicyName
from nvcf_proto.charts.rules import ChartRefused, Target, check_chart

CLAIM = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"}}
UNRESTRICTED = Policy(PolicyName.UNRESTRICTED, objects=False)


def claim(**spec: str) -> dict[str, Any]:
    return {**CLAIM, "spec": spec}


def stateful_set(**spec: str) -> dict[str, Any]:
    pod = {"spec": {"containers": [{"name": "main", "image": "example/web:1"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "web"},
        "spec": {"template": pod, "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": spec}]},
    }


@pytest.mark.parametrize("make", [claim, stateful_set])
def test_a_claim_names_no_volume_of_the_cluster(make: Any) -> None:
    assert check_chart([make(storageClassName="fast")], Policy(), Target()).objects
    with pytest.raises(ChartRefused, match="volumeName names a volume of the cluster: remove it"):
        check_chart([make(volumeName="pv-1")], Policy(), Target())
    assert check_chart([make(volumeName="pv-1")], UNRESTRICTED, Target()).objects
