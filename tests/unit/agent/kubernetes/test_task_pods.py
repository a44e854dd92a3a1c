"""Pods of tasks: what they hold, and how their status says that a task has ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.kubernetes.pods import names
from nvcf_agent.kubernetes.pods.observe import Limits, Memory, failure_of
from nvcf_agent.kubernetes.pods.render import render
from nvcf_agent.kubernetes.pods.status import is_starting
from nvcf_agent.kubernetes.pods.task_end import (
    TaskEnd,
    end_of_gone_task,
    end_of_task,
    has_begun,
    is_task,
)
from nvcf_agent.kubernetes.pods.texts import described
from nvcf_agent.state import transitions
from nvcf_agent.state.events import Ended
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import Category, Phase
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.leases import LEASE_SECONDS
from nvcf_proto.task_policies import FENCE_SECONDS
from tests.unit.agent.kubernetes.pods import (
    CREATED,
    SETTINGS,
    TASK_ID,
    TOKEN,
    condition,
    ended,
    logins,
    packed,
    pod,
    running,
    stamp,
    task_pod,
    task_spec,
    waiting,
)
from tests.unit.agent.kubernetes.test_pod_rendering import check, container, environment, secrets

ARTIFACT = [{"name": "m", "version": "1", "uri": "https://files.example/m.bin"}]
OWN = [{"key": "EPOCHS", "value": "3"}, {"key": "NVCT_TASK_ID", "value": "forged"}]
EVICTED = condition("DisruptionTarget", True, reason="EvictionByEvictionAPI", message="drained")


def test_a_pod_has_the_task_and_its_worker() -> None:
    made = task_spec(
        variables={
            "TASK_CONTAINER_ARGS": "python train.py --name 'a b'",
            "TASK_CONTAINER_ENV": packed(OWN),
            "CONTAINER_REGISTRIES_CREDENTIALS": logins("registry.example"),
        },
        models=packed(ARTIFACT),
    )
    objects = render(made, SETTINGS)
    check(objects)
    found = objects.pod["spec"]
    assert objects.pod["metadata"]["name"] == f"0-sr-{made.order.request_id}-task"
    assert [each["name"] for each in found["containers"]] == ["task", "utils"]
    assert [each["name"] for each in found["initContainers"]] == ["init"]
    assert (found["restartPolicy"], found["terminationGracePeriodSeconds"]) == ("Never", 600)
    task, worker = container(objects, "task"), container(objects, "utils")
    assert task["args"] == ["python", "train.py", "--name", "a b"]
    assert worker["args"] == ["task-companion"]
    assert not {"readinessProbe", "livenessProbe", "startupProbe", "lifecycle"} & task.keys()
    for each in (task, worker):
        mounts = {mount["mountPath"]: mount for mount in each["volumeMounts"]}
        assert mounts["/var/task"]["name"] == mounts["/var/task/results"]["name"] == "task-data"
        assert mounts["/var/task/results"]["subPath"] == "results"
    own, beside = environment(objects, "task"), environment(objects, "utils")
    assert own["EPOCHS"] == "3"
    for each in (own, beside):
        assert each["NVCT_TASK_ID"] == TASK_ID
        assert each["NVCT_TASK_NAME"] == "train"
        assert each["NVCT_INSTANCE_ID"] == made.instance_id
        assert each["NVCT_RESULTS_DIR"] == "/var/task/results"
        assert each["NVCT_PROGRESS_FILE_PATH"] == "/var/task/results/progress"
    assert "FUNCTION_ID" not in own | beside
    assert beside["NVCT_WORKER_TOKEN"] == TOKEN
    assert TOKEN not in str(own)
    assert beside["HEALTH_PORT"] == str(worker["startupProbe"]["httpGet"]["port"]) != "8080"
    assert any(name.startswith("workload-") for name in secrets(objects))


def test_labels_and_annotations_say_task() -> None:
    made = task_spec()
    metadata = render(made, SETTINGS).pod["metadata"]
    assert metadata["labels"]["task-id"] == metadata["labels"]["TASK_ID"] == TASK_ID
    assert "function-id" not in metadata["labels"]
    found = names.instance_of({"metadata": metadata})
    assert found == made.instance_of
    assert found is not None
    assert found.secrets_path == f"tasks/{TASK_ID}/secrets"


def test_an_image_that_reports_by_itself_has_no_worker_beside_it() -> None:
    objects = render(task_spec(worker_mode="library"), SETTINGS)
    check(objects)
    assert [each["name"] for each in objects.pod["spec"]["containers"]] == ["task"]
    assert environment(objects, "task")["NVCT_WORKER_TOKEN"] == TOKEN
    alone = objects.pod | {"status": {"containerStatuses": [ended("task")]}}
    assert end_of_task(alone, CREATED) == TaskEnd(0)


def test_a_task_with_a_lease_is_ended_by_its_node_when_its_worker_has_gone() -> None:
    made = task_spec(variables={"NVCT_LEASE_DURATION": "240s"})
    objects = render(made, SETTINGS)
    check(objects)
    task, worker = container(objects, "task"), container(objects, "utils")
    assert task["livenessProbe"]["httpGet"] == worker["startupProbe"]["httpGet"]
    probe = task["livenessProbe"]
    grace = probe["terminationGracePeriodSeconds"]
    seconds = probe["periodSeconds"] * (probe["failureThreshold"] + 1) + grace
    # Task and worker begin together, and the fence counts from the worker's last sign of life.
    assert LEASE_SECONDS + seconds < FENCE_SECONDS
    assert task["startupProbe"]["failureThreshold"] + grace < FENCE_SECONDS
    alone = container(render(replace(made, order=library(made.order)), SETTINGS), "task")
    assert "livenessProbe" not in alone


def library(order: CreationMessage) -> CreationMessage:
    return order.replace(launch_specification=order.launch_specification.replace(worker_mode="library"))


def test_a_task_that_its_node_ended_for_the_sake_of_its_worker_did_not_fail_itself() -> None:
    seen = task_pod(ended("task", 137, at=CREATED + 60), ended("utils", 143, at=CREATED + 20), phase="Failed")
    found = end_of_task(seen, CREATED + 61)
    assert found is not None
    assert found.failure is not None
    assert (found.exit_code, found.runs) == (None, False)
    assert found.failure.text == "its worker ended with exit code 143"


def going(found: dict[str, Any], at: float, grace: int = 30) -> dict[str, Any]:
    found["metadata"] |= {"deletionTimestamp": stamp(at + grace), "deletionGracePeriodSeconds": grace}
    return found


def test_only_tasks_are_tasks() -> None:
    assert is_task(task_pod())
    assert not is_task(pod())


def test_the_exit_code_of_the_task_decides() -> None:
    assert end_of_task(task_pod(running("task"), running("utils")), CREATED) is None
    assert end_of_task(task_pod(ended("task"), running("utils")), CREATED) == TaskEnd(0)
    found = end_of_task(task_pod(ended("task", 3), running("utils")), CREATED)
    assert found is not None
    assert found.exit_code == 3
    assert found.failure is not None
    assert found.failure.text == "the task ended with exit code 3"
    # The worker is ended with the pod, whatever its own code is then.
    assert end_of_task(task_pod(ended("task"), ended("utils", 143), phase="Failed"), CREATED) == TaskEnd(0)


def test_a_task_out_of_memory_is_named() -> None:
    seen = task_pod(ended("task", 137, "OOMKilled"), running("utils"))
    found = end_of_task(seen, CREATED)
    assert found is not None
    assert found.failure is not None
    assert found.failure.category is Category.OUT_OF_MEMORY
    assert "used more memory than its limit of 1Gi (OOMKilled); choose" in described(
        found.failure, task_pod(ended("task", 137, "OOMKilled"))
    )


def test_the_end_waits_for_a_worker_that_is_late() -> None:
    late = task_pod(ended("task", at=CREATED + 5), running("utils", ready=False))
    assert end_of_task(late, CREATED + 64) is None
    assert end_of_task(late, CREATED + 65) == TaskEnd(0)
    never = task_pod(ended("task"), waiting("utils", "ErrImagePull"))
    assert end_of_task(never, CREATED + 61) == TaskEnd(0)


@pytest.mark.parametrize(
    ("code", "exit_code", "text"),
    [(124, 124, "its maximum run time is over"), (1, None, "its worker ended with exit code 1")],
)
def test_a_worker_that_ends_ends_the_task(code: int, exit_code: int | None, text: str) -> None:
    found = end_of_task(task_pod(running("task"), ended("utils", code)), CREATED)
    assert found is not None
    assert found.failure is not None
    assert (found.exit_code, found.failure.text, found.runs) == (exit_code, text, True)


def test_nvidias_worker_says_that_a_task_is_complete() -> None:
    assert end_of_task(task_pod(running("task"), ended("utils")), CREATED) == TaskEnd(0, runs=True)


@pytest.mark.parametrize("code", [0, 143])
def test_a_task_that_was_told_to_end_is_not_complete(code: int) -> None:
    evicted = task_pod(ended("task", code, at=CREATED + 9), ended("utils", 143), conditions=(EVICTED,))
    assert end_of_task(going(evicted, CREATED + 5), CREATED + 10) is None
    end = end_of_gone_task(evicted)
    assert end.exit_code is None
    assert end.failure is not None
    assert end.failure.category is Category.EVICTED
    deleted = going(task_pod(ended("task", code, at=CREATED + 9), ended("utils")), CREATED + 5)
    gone = end_of_gone_task(deleted)
    assert gone.failure is not None
    assert gone.failure.category is Category.LOST
    # It had ended before anybody told it to.
    early = going(task_pod(ended("task", code, at=CREATED + 4), ended("utils")), CREATED + 5)
    assert end_of_gone_task(early).exit_code == code


@pytest.mark.parametrize(
    ("status", "category"),
    [
        ({"phase": "Failed", "reason": "Evicted", "message": "disk"}, Category.EVICTED),
        ({"phase": "Failed", "reason": "NodeLost"}, Category.NODE_LOST),
        ({"phase": "Failed", "reason": "UnexpectedAdmissionError"}, Category.ADMISSION),
    ],
)
def test_what_the_node_says_goes_before_the_exit_code(status: dict[str, Any], category: Category) -> None:
    seen = task_pod(ended("task"), ended("utils"), **status)
    assert end_of_task(seen, CREATED) is None
    failure = failure_of(seen, Memory(), CREATED, Limits())
    assert failure is not None
    assert failure.category is category
    assert "another instance" not in described(failure, seen)


def test_a_task_that_runs_has_its_whole_grace_period_though_its_worker_starts() -> None:
    seen = task_pod(running("task", started=True), running("utils", ready=False, started=False))
    assert is_starting(seen)
    assert has_begun(seen)
    assert not has_begun(task_pod(waiting("task", "ContainerCreating")))


@given(
    task=st.sampled_from([running("task"), ended("task"), ended("task", 1), waiting("task", "Creating")]),
    worker=st.sampled_from([running("utils"), ended("utils"), ended("utils", 143), waiting("utils", "X")]),
    disrupted=st.booleans(),
    deleted=st.booleans(),
)
def test_only_a_task_that_nobody_ended_can_be_complete(
    task: dict[str, Any], worker: dict[str, Any], disrupted: bool, deleted: bool
) -> None:
    seen = task_pod(task, worker, conditions=(EVICTED,) if disrupted else ())
    if deleted:
        going(seen, CREATED)
    end = end_of_task(seen, CREATED + 100)
    if end is not None:
        assert not disrupted
        assert not deleted
        assert (end.exit_code == 0) == (end.failure is None)
        assert task.get("state", {}).get("terminated") or worker["state"].get("terminated")
        assert end.runs != ("terminated" in task["state"])


def managed(**launch: Any) -> Any:
    order = task_spec(**launch).order
    instance = transitions.acknowledged(transitions.accepted(order, Share(), 0.0))
    instance = transitions.about_to_run(transitions.creating(instance, wall=0.0))
    return transitions.launched(instance, pid=None, health_port=None, log_path="", now=0.0, wall=0.0)


def test_a_complete_task_is_reported_once_its_pod_is_gone() -> None:
    event = Ended("i", "", final=True, gone=False, exit_code=0)
    after = transitions.after_event(managed(), event, now=1.0, wall=1.0)
    assert (after.phase, after.has_process, after.grace) == (Phase.COMPLETED, True, 120.0)
    gone = transitions.deleted(after, now=2.0, wall=2.0)
    assert (gone.phase, gone.has_process, gone.exit_code, gone.reason) == (Phase.COMPLETED, False, 0, None)
    # Whoever deletes the pod meanwhile changes nothing.
    late = Ended("i", "deleted", Category.LOST, Cause.NOT_FOUND, final=True)
    assert transitions.after_event(after, late, now=2.0, wall=2.0).exit_code == 0


def test_a_task_that_still_runs_has_its_own_grace_period() -> None:
    event = Ended("i", "its worker ended", Category.UNKNOWN, Cause.FAILED, True, False, None, runs=True)
    after = transitions.after_event(managed(), event, now=1.0, wall=1.0)
    assert (after.phase, after.grace) == (Phase.FAILED, 600.0)


def test_uploads_have_the_grace_period_of_the_task() -> None:
    event = Ended("i", "", final=True, gone=False, exit_code=0)
    uploading = managed(result_handling_strategy="UPLOAD")
    assert transitions.after_event(uploading, event, now=1.0, wall=1.0).grace == 600.0
