"""Pods that have images pulled: what they are, and what becomes of them."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from nvcf_agent.kubernetes.prefetch import NOWHERE, outcome, prefetch_pod
from tests.unit.agent.kubernetes.pods import IMAGE, SETTINGS, pod, running, terminated, waiting


def one(state: dict[str, Any] | None, phase: str = "Pending") -> dict[str, Any]:
    found = pod(*(() if state is None else (state,)), phase=phase)
    found["spec"]["containers"] = [{"name": "inference", "image": IMAGE}]
    return found


def test_the_pod_asks_for_the_image_on_one_node_and_runs_nothing() -> None:
    body = prefetch_pod("prefetch-x", IMAGE, "node-1", SETTINGS, ["login"])
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **body}, "1.35", strict=True)
    assert body["spec"]["containers"][0]["command"] == [NOWHERE]
    assert body["spec"]["imagePullSecrets"] == [{"name": "login"}]
    assert "node-1" in str(body["spec"]["affinity"])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, False),
        (one(None), None),
        (one(waiting("inference", "ContainerCreating")), None),
        (one(waiting("inference", "ErrImagePull")), False),
        (one(waiting("inference", "CreateContainerConfigError")), True),
        (one(waiting("inference", "RunContainerError")), True),
        (one(running("inference")), True),
        (one({"name": "inference", "state": {"terminated": terminated(128, "StartError")}}, "Failed"), True),
        (one(None, "Failed"), False),
    ],
)
def test_whether_the_image_is_there(found: dict[str, Any] | None, expected: bool | None) -> None:
    assert outcome(found) is expected
