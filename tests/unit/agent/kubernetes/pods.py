"""Orders of container functions, and pods as the API server shows them."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.state.inventory import Limits, Share
from nvcf_proto.icms.messages import Action, TaskDetails
from tests.unit.agent.orders import order

IMAGE = "registry.example/team/function:1"
WORKER = "registry.example/nvcf/worker:1"
SETTINGS = PodSettings(worker_image=WORKER, cluster_name="here", region="us-west-1")
TOKEN = "token-of-the-worker"
"""The worker token of these orders."""
TASK_ID = "00000000-0000-4000-8000-0000000000aa"
CREATED = 1_700_000_000.0


def packed(value: Any) -> str:
    """Return base64 of JSON."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def logins(*hosts: str) -> str:
    """Return logins of an account for these registries, one secret each."""
    return packed({"k8sSecrets": [{"auths": {host: {"auth": "dTpw"}}} for host in hosts]})


def spec(request_id: str = "", *, gpus: int = 2, variables: Any = None, **changes: Any) -> InstanceSpec:
    """An instance of a function in an image; what a message has may be among the changes."""
    message = order(
        request_id,
        gpu="H100" if gpus else "CPU",
        variables={"NVCF_WORKER_TOKEN": TOKEN, **(variables or {})},
        process=None,
        instance_type_name=f"NCP.GPU.H100_{gpus}x" if gpus else "small",
        instance_type_value="NCP.GPU.H100" if gpus else "small",
        requested_gpu_count=gpus,
        **{"container_image": IMAGE, **changes},
    )
    return InstanceSpec(message, Share(gpu="H100", gpus=gpus), Limits(), zone="here", trace="00-a-b-01")


def task_spec(request_id: str = "", *, gpus: int = 2, variables: Any = None, **changes: Any) -> InstanceSpec:
    """An instance of a task in an image."""
    own = {
        "NVCT_WORKER_TOKEN": TOKEN,
        "NVCT_FQDN_GRPC": "gateway:443",
        "TASK_NAME": "train",
        "FUNCTION_NAME": "",
    }
    launch = {"termination_grace_period_duration": "PT10M", "result_handling_strategy": "NONE"}
    made = spec(request_id, gpus=gpus, variables={**own, **(variables or {})}, **{**launch, **changes})
    message = made.order.replace(
        action=Action.CREATE_TASK.value, function_details=None, task_details=TaskDetails(TASK_ID)
    )
    return replace(made, order=message)


def decoded(secret: dict[str, Any]) -> dict[str, str]:
    """Return the values of a Secret."""
    return {name: base64.b64decode(value).decode() for name, value in secret.get("data", {}).items()}


def stamp(at: float) -> str:
    """Return a time stamp of the API server."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(kind: str, holds: bool, at: float = CREATED, **more: str) -> dict[str, Any]:
    """Return a condition of a pod."""
    return {"type": kind, "status": str(holds), "lastTransitionTime": stamp(at), **more}


def waiting(name: str, reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    """Return the status of a container that does not run."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": name, "state": state, "ready": False, "restartCount": 0, "imageID": "", **more}


def running(name: str, at: float = CREATED, *, ready: bool = True, **more: Any) -> dict[str, Any]:
    """Return the status of a container that runs."""
    state = {"running": {"startedAt": stamp(at)}}
    return {"name": name, "state": state, "ready": ready, "restartCount": 0, "imageID": "x", **more}


def ended(name: str, code: int = 0, reason: str = "", at: float = CREATED, **more: Any) -> dict[str, Any]:
    """Return the status of a container that ended at that time, and is not started again."""
    state = terminated(code, reason or ("Error" if code else "Completed"), at=at) | {"finishedAt": stamp(at)}
    return {"name": name, "state": {"terminated": state}, "ready": False, "restartCount": 0, **more}


def task_pod(*statuses: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a pod of a task and its worker."""
    found = pod(*statuses, **more)
    found["spec"]["containers"][0]["name"] = "task"
    return found


def terminated(code: int, reason: str = "Error", message: str = "", at: float = CREATED) -> dict[str, Any]:
    """Return how a run of a container ended."""
    return {"exitCode": code, "reason": reason, "message": message, "startedAt": stamp(at)}


def pod(
    *statuses: dict[str, Any],
    init: tuple[dict[str, Any], ...] = (),
    conditions: tuple[dict[str, Any], ...] = (),
    node: str = "one",
    phase: str = "Pending",
    **status: Any,
) -> dict[str, Any]:
    """Return a pod of two containers, created at CREATED."""
    return {
        "metadata": {
            "name": "0-sr-a",
            "creationTimestamp": stamp(CREATED),
            "annotations": {"nvcf.nvidia.io/instance-id": "0-sr-a"},
        },
        "spec": {
            **({"nodeName": node} if node else {}),
            "initContainers": [{"name": each["name"], "image": WORKER} for each in init],
            "containers": [
                {
                    "name": "inference",
                    "image": IMAGE,
                    "resources": {"limits": {"memory": "1Gi"}},
                },
                {"name": "utils", "image": WORKER},
            ],
        },
        "status": {
            "phase": phase,
            "conditions": [condition("PodScheduled", bool(node)), *conditions],
            "initContainerStatuses": list(init),
            "containerStatuses": list(statuses),
            **status,
        },
    }
