"""Phases of a MiniService and the health of its objects: a table of kinds, and random histories."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, POD
from nvcf_agent.kubernetes.crds.mini_service import ENDS, MiniServicePhase, MiniServiceStatus
from nvcf_agent.kubernetes.helm import miniservice as phases
from nvcf_agent.kubernetes.helm.health import Health, View, health_of, remember_all
from nvcf_agent.kubernetes.helm.kinds import DEPLOYMENT, JOB, REPLICA_SET, STATEFUL_SET, VOLUME_CLAIM, Ref
from nvcf_agent.kubernetes.helm.miniservice import Reason
from nvcf_agent.kubernetes.helm.records import Rendered
from nvcf_agent.kubernetes.pods.observe import Failure, Limits
from nvcf_agent.state.events import Ended, Ready, Unready
from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause

NOW = 1_800_000_000.0
LIMITS = Limits()
READY = [{"type": "Ready", "status": "True"}]
NEW = MiniServiceStatus()
RENDERED = Rendered(({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}},), 1)
FAILURE = Failure(Cause.IMAGE_PULL, Category.IMAGE_PULL, "cannot pull")


def pod(name: str = "p", *, owned: bool = False, **changes: Any) -> dict[str, Any]:
    """A pod that is ready."""
    owners = [{"kind": "ReplicaSet", "controller": True}] if owned else []
    body: dict[str, Any] = {
        "metadata": {"name": name, "uid": f"uid-{name}", "ownerReferences": owners},
        "spec": {"nodeName": "n", "containers": [{"name": "main", "image": "example.com/a:1"}]},
        "status": {"phase": "Running", "conditions": READY},
    }
    return body | changes


WORKER = pod("utils")


def look(ref: Ref, obj: dict[str, Any] | None, *pods: Any, worker: Any = WORKER, **more: Any) -> Health:
    """Return the health of an instance with one object."""
    live = {} if obj is None else {ref: obj}
    everyone = [*pods, *([worker] if worker else [])]
    return health_of(View([ref], live, pods, worker, remember_all(everyone, {}, NOW), **more), NOW, LIMITS)


def of(spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """An object with a status, seen by its controller."""
    return {"metadata": {"generation": 1}, "spec": spec or {}, "status": {"observedGeneration": 1, **status}}


@pytest.mark.parametrize(
    ("kind", "obj", "problem"),
    [
        (DEPLOYMENT, of(updatedReplicas=1, availableReplicas=1), ""),
        (DEPLOYMENT, of({"replicas": 2}, updatedReplicas=2, availableReplicas=1), "has 1 of 2 pods ready"),
        (DEPLOYMENT, of({"replicas": 2}, updatedReplicas=1, availableReplicas=2), "has 1 of 2 pods ready"),
        (DEPLOYMENT, of({"replicas": 0}), ""),
        (DEPLOYMENT, {"metadata": {"generation": 2}, "status": {"observedGeneration": 1}}, "is new"),
        (STATEFUL_SET, of({"replicas": 2}, readyReplicas=2), ""),
        (
            STATEFUL_SET,
            of({"replicas": 2}, readyReplicas=2, updatedReplicas=1, updateRevision="b", currentRevision="a"),
            "has 1 of 2 pods ready",
        ),
        (REPLICA_SET, of({"replicas": 3}, readyReplicas=1), "has 1 of 3 pods ready"),
        (JOB, of(conditions=[{"type": "Complete", "status": "True"}]), ""),
        (JOB, of(active=1, ready=1), ""),
        (JOB, of(active=2, ready=1), "has 1 pods ready"),
        (JOB, of(), "has 0 pods ready"),
        (VOLUME_CLAIM, of(phase="Pending"), ""),
        (CONFIG_MAP, {"metadata": {}}, ""),
        (CONFIG_MAP, None, "is missing"),
    ],
)
def test_what_the_objects_of_each_kind_are_waited_for(kind: Any, obj: Any, problem: str) -> None:
    found = look((kind, "x"), obj, installed=False)
    assert found.objects == (f'{kind.kind} "x" {problem}' if problem else "")
    assert found.failure is None
    assert found.scheduled
    assert not found.worker


@pytest.mark.parametrize(
    ("kind", "obj", "text"),
    [
        (
            DEPLOYMENT,
            of(
                conditions=[
                    {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: max-gpus"}
                ]
            ),
            "cannot make its pods: exceeded quota: max-gpus",
        ),
        (
            JOB,
            of(conditions=[{"type": "Failed", "status": "True", "message": "too often"}]),
            "failed: too often",
        ),
        (VOLUME_CLAIM, of(phase="Lost"), "has lost its volume"),
        (DEPLOYMENT, None, "was deleted, and not by the agent"),
    ],
)
def test_objects_that_fail_for_good(kind: Any, obj: Any, text: str) -> None:
    found = look((kind, "x"), obj)
    assert found.failure is not None
    assert found.failure.text == f'{kind.kind} "x" {text}'


def test_a_pod_that_a_controller_replaces_is_no_failure() -> None:
    evicted = pod("e", owned=True, status={"phase": "Failed", "reason": "Evicted"})
    ref = (DEPLOYMENT, "x")
    fine = of(updatedReplicas=1, availableReplicas=1)
    assert look(ref, fine, evicted).is_good
    alone = look(ref, fine, pod("e", status={"phase": "Failed", "reason": "Evicted"}))
    assert alone.failure is not None
    assert alone.failure.category is Category.EVICTED
    assert alone.failure.text.startswith('Pod "e": its node ended it: Evicted')
    assert look(ref, fine, pod("d", status={"phase": "Succeeded"})).is_good


def test_the_worker_alone_counts_if_the_chart_says_so() -> None:
    broken = pod("e", status={"phase": "Failed"})
    assert look((DEPLOYMENT, "x"), None, broken, by_worker=True).is_good
    gone = look((DEPLOYMENT, "x"), None, worker=None, by_worker=True)
    assert gone.failure is not None
    assert gone.failure.cause is Cause.UTILS_POD_NOT_FOUND
    assert gone.worker_failed


def test_all_pods_are_scheduled_before_an_instance_starts() -> None:
    waiting = pod(spec={"containers": [{"name": "a", "image": "b"}]}, status={"phase": "Pending"})
    found = look((POD, "p"), waiting, waiting)
    assert not found.scheduled
    assert "no node yet" in found.objects


def advance(status: MiniServiceStatus, health: Health, now: float = NOW) -> MiniServiceStatus:
    """Return the status after a look."""
    return phases.observed(status, health, now, 10_800)


def test_an_instance_goes_from_new_to_running_and_shows_why_it_waits() -> None:
    installing = phases.moved(NEW, MiniServicePhase.INSTALLING, NOW)
    assert phases.event_of("i", installing) == Unready("i", "Installing")
    installed = phases.installed(installing, RENDERED, NOW)
    assert (installed.phase, installed.revision, installed.observed_generation) == ("Installed", 0, 1)
    pending = advance(installed, Health("no node yet", "the worker: no node yet"))
    assert pending.phase == "Installed"
    assert phases.event_of("i", pending) == Unready("i", "Installed: no node yet")
    starting = advance(pending, Health("", "the worker: not ready", scheduled=True))
    assert starting.phase == "Starting"
    running = advance(starting, Health(scheduled=True))
    assert phases.event_of("i", running) == Ready("i")
    unready = advance(running, Health("", "the worker: not ready", scheduled=True))
    assert unready.phase == "Running"
    assert phases.event_of("i", unready) == Unready("i", "the worker: not ready")


def test_a_failure_ends_an_instance_for_good_with_its_cause() -> None:
    running = advance(phases.installed(NEW, RENDERED, NOW), Health(scheduled=True))
    failed = advance(running, Health("x", failure=FAILURE))
    assert failed.phase == "Failed"
    assert phases.event_of("i", failed) == Ended(
        "i", "cannot pull", Category.IMAGE_PULL, Cause.IMAGE_PULL, final=True, gone=False
    )
    assert advance(failed, Health(scheduled=True)) == failed
    # It is read again after a restart of the agent.
    assert MiniServiceStatus.from_dict(failed.to_dict()) == failed


def test_an_instance_that_waits_too_long_is_given_up() -> None:
    installed = phases.installed(NEW, RENDERED, NOW)
    late = advance(installed, Health('Deployment "x" has 0 of 1 pods ready'), NOW + 10_801)
    event = phases.event_of("i", late)
    assert isinstance(event, Ended)
    assert event.reason == 'not ready after 180 min: Deployment "x" has 0 of 1 pods ready'
    assert [each.reason for each in late.conditions if each.type == "ObjectsHealthy"] == [Reason.PENDING]


def test_new_values_count_and_refused_ones_leave_what_was() -> None:
    running = advance(phases.installed(NEW, RENDERED, NOW), Health(scheduled=True))
    refused = phases.update_refused(running, Reason.INVALID, "no", 2, NOW)
    assert (refused.phase, refused.revision, refused.observed_generation) == ("Running", 0, 2)
    assert phases.event_of("i", refused) == Ready("i")
    again = phases.installed(refused, Rendered(RENDERED.objects, 3), NOW)
    assert (again.phase, again.revision, again.observed_generation) == ("Running", 1, 3)
    assert all(each.status == "True" for each in again.conditions)


HEALTHS = st.builds(
    Health,
    st.sampled_from(["", "objects wait"]),
    st.sampled_from(["", "worker waits"]),
    st.booleans(),
    st.sampled_from([None, None, None, FAILURE]),
    st.booleans(),
)
STEPS = st.one_of(
    HEALTHS.map(lambda health: lambda status, now: advance(status, health, now)),
    st.integers(1, 9).map(lambda n: lambda status, now: phases.installed(status, Rendered((), n), now)
                          if not phases.is_over(status) else status),
    st.just(lambda status, now: phases.update_refused(status, Reason.INVALID, "no", 9, now)
            if phases.is_installed(status) else status),
    st.just(lambda status, now: phases.refused(status, Reason.INVALID, "no", now)),
)  # fmt: skip


@given(st.lists(st.tuples(STEPS, st.floats(0, 20_000)), max_size=12))
def test_any_history_keeps_the_order_of_phases(steps: list[Any]) -> None:
    order = ["", "Installing", "Installed", "Starting", "Running"]
    status, now = phases.moved(NEW, MiniServicePhase.INSTALLING, NOW), NOW
    for step, passed in steps:
        now += passed
        after: MiniServiceStatus = step(status, now)
        if status.phase in ENDS:
            assert after.phase == status.phase
        elif after.phase not in ENDS:
            assert order.index(after.phase) >= order.index(status.phase)
        assert after.revision >= status.revision
        assert len({each.type for each in after.conditions}) == len(after.conditions)
        event = phases.event_of("i", after)
        assert isinstance(event, Ended) == (after.phase in ENDS)
        assert MiniServiceStatus.from_dict(after.to_dict()) == after
        status = after
