"""What a chart may have: a table of refusals with their sentences, what is cleared, and random charts."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.charts.objects import containers, pod_template
from nvcf_proto.charts.policy import Policy, PolicyName, PolicyUnavailable, chosen_policy
from nvcf_proto.charts.rules import ChartRefused, CheckedChart, Target, check_chart
from nvcf_proto.models.specifications import HelmValidationPolicy, KubernetesType

DEFAULT = Policy()
UNRESTRICTED = Policy(PolicyName.UNRESTRICTED, objects=False)
TARGET = Target("web", 8000, "sr-1", 2)


def deployment(name: str = "web", *, replicas: int = 1, **pod: Any) -> dict[str, Any]:
    """A deployment with one container; `pod` is added to its pods' spec."""
    spec = {"containers": [{"name": "main", "image": "example/web:1"}], **pod}
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def container(**changes: Any) -> dict[str, Any]:
    """Members of a pod's spec: one container with these changes."""
    return {"containers": [{"name": "main", "image": "example/web:1", **changes}]}


def service(name: str = "web", port: int = 8000, **spec: Any) -> dict[str, Any]:
    """A service of the deployment of the same name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": port}], **spec},
    }


def test_a_chart_does_not_take_the_names_of_the_platforms_objects() -> None:
    target = replace(TARGET, taken=frozenset((("Secret", "nvcf-secrets"),)))
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "nvcf-secrets"}}
    (reason,) = reasons(secret, target=target)
    assert reason.startswith('Secret "nvcf-secrets": the platform makes an object of this name')
    assert check({**secret, "metadata": {"name": "other"}}, deployment("nvcf-secrets"), target=target)


def check(*objects: Any, policy: Policy = DEFAULT, target: Target = TARGET) -> CheckedChart:
    """Check objects beside the service that the function needs."""
    return check_chart([service(), *objects], policy, target)


def reasons(*objects: Any, policy: Policy = DEFAULT, target: Target = TARGET) -> list[str]:
    """Return why objects are refused."""
    with pytest.raises(ChartRefused) as caught:
        check(*objects, policy=policy, target=target)
    return list(caught.value.reasons)


POD = 'Deployment "web": spec.template.spec.'


@pytest.mark.parametrize(
    ("pod", "field"),
    [
        ({"hostNetwork": True}, "hostNetwork gives pods the node's network: remove it"),
        ({"hostPID": True}, "hostPID shows"),
        ({"hostIPC": True}, "hostIPC gives"),
        ({"automountServiceAccountToken": True}, "automountServiceAccountToken asks for a token"),
        ({"ephemeralContainers": [{"name": "x", "image": "y"}]}, "ephemeralContainers is for debugging"),
        ({"resourceClaims": [{"name": "x"}]}, "resourceClaims asks for devices"),
        ({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced"}]}}, "securityContext.sysctls"),
        (
            {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
            "securityContext.seccompProfile.type",
        ),
        ({"securityContext": {"windowsOptions": {"hostProcess": True}}}, "securityContext.windowsOptions"),
        (
            {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
            "volumes[0].hostPath is not allowed: use configMap",
        ),
        ({"volumes": [{"name": "v", "nfs": {"server": "x"}}]}, "volumes[0].nfs is not allowed"),
        ({"volumes": [{"name": "v", "csi": {"driver": "x"}}]}, "volumes[0].csi is not allowed"),
        (
            {"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]},
            "volumes[0].projected.sources[0].serviceAccountToken is not allowed",
        ),
        ({"containers": []}, "containers is empty"),
        (container(image=""), "containers[0].image is missing"),
        (
            container(ports=[{"containerPort": 1, "hostPort": 80}]),
            "containers[0].ports[0].hostPort takes a port",
        ),
        (container(securityContext={"privileged": True}), "containers[0].securityContext.privileged gives"),
        (
            container(securityContext={"allowPrivilegeEscalation": True}),
            "containers[0].securityContext.allowPrivilegeEscalation is true: remove it",
        ),
        (
            container(securityContext={"capabilities": {"add": ["SYS_ADMIN"]}}),
            "containers[0].securityContext.capabilities.add has SYS_ADMIN",
        ),
        (container(securityContext={"procMount": "Unmasked"}), "containers[0].securityContext.procMount"),
        (container(volumeDevices=[{"name": "x"}]), "containers[0].volumeDevices"),
        (container(livenessProbe={"httpGet": {"host": "x"}}), "containers[0].livenessProbe.httpGet.host"),
        (container(lifecycle={"preStop": {"tcpSocket": {"host": "x"}}}), "containers[0].lifecycle.preStop"),
    ],
)
def test_a_pod_that_could_leave_its_namespace_is_refused(pod: dict[str, Any], field: str) -> None:
    found = reasons(deployment(**pod))
    assert len(found) == 1
    assert found[0].startswith(POD + field)
    if pod.get("containers") != [] and "image is missing" not in field:
        assert check(deployment(**pod), policy=UNRESTRICTED).objects


@pytest.mark.parametrize("kind", ["ReplicaSet", "StatefulSet", "Job", "CronJob", "Pod"])
def test_all_kinds_with_pods_are_checked(kind: str) -> None:
    spec = {"hostPID": True, **container()}
    template = {"spec": spec}
    body: dict[str, Any] = {
        "Pod": template,
        "CronJob": {"spec": {"jobTemplate": {"spec": {"template": template}}}},
    }.get(kind, {"spec": {"template": template}})
    group = {"Pod": "v1", "Job": "batch/v1", "CronJob": "batch/v1"}.get(kind, "apps/v1")
    found = reasons({"apiVersion": group, "kind": kind, "metadata": {"name": "x"}, **body})
    assert len(found) == 1
    assert "hostPID" in found[0]


@pytest.mark.parametrize(
    ("obj", "reason"),
    [
        (service("b", type="NodePort"), 'Service "b": spec.type is NodePort: use ClusterIP'),
        (service("b", type="LoadBalancer"), 'Service "b": spec.type is LoadBalancer'),
        (service("b", externalIPs=["10.0.0.1"]), 'Service "b": spec.externalIPs takes an address'),
        (
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d"}},
            'DaemonSet "d": kind DaemonSet of apps/v1 is not allowed: remove it',
        ),
        (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}},
            'Namespace "n": kind Namespace',
        ),
        (
            {"kind": "ConfigMap", "metadata": {"name": "c"}, "apiVersion": "example.com/v1"},
            'ConfigMap "c": kind',
        ),
        ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}, 'ConfigMap "": metadata.name is missing'),
        (
            {**deployment("b"), "metadata": {"name": "b", "namespace": "kube-system"}},
            'Deployment "b": metadata.namespace',
        ),
        ("text", "the chart renders a document that is no object"),
    ],
)
def test_objects_that_a_chart_may_not_have(obj: Any, reason: str) -> None:
    assert [each for each in reasons(obj) if each.startswith(reason)]


def test_all_reasons_are_given_at_once_and_the_text_is_bounded() -> None:
    many = [deployment(f"d{number}", hostPID=True, hostIPC=True) for number in range(15)]
    with pytest.raises(ChartRefused) as caught:
        check(*many)
    assert len(caught.value.reasons) == 30
    assert len(str(caught.value).splitlines()) == 21
    assert str(caught.value).endswith("and 10 more")


def test_a_chart_has_at_most_300_objects() -> None:
    maps = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"m{n}"}} for n in range(300)]
    assert len(check(*maps[:299]).objects) == 300
    assert reasons(*maps) == ["the chart has 301 objects, more than 300: make it smaller"]


def test_the_service_that_takes_the_requests_is_in_the_chart_with_its_port() -> None:
    with pytest.raises(ChartRefused, match=r'Service "web".* not in the chart; its services: a, b\. Create'):
        check_chart([service("a"), service("b")], DEFAULT, TARGET)
    with pytest.raises(ChartRefused, match=r'Service "web": spec\.ports has no port 8000.*its ports: 9000'):
        check_chart([service(port=9000)], UNRESTRICTED, TARGET)


def test_a_chart_asks_for_no_more_gpus_than_the_instance_type_has() -> None:
    two: dict[str, Any] = container(resources={"limits": {"nvidia.com/gpu": 1}})
    assert check(deployment(replicas=2, **two)).objects
    found = reasons(deployment(replicas=3, **two))
    assert found == [
        'the chart asks for 3 GPUs (Deployment "web": 3), the deployment\'s instance type has 2: deploy '
        "with a larger instance type, or lower replicas or limits"
    ]
    # Init containers end before the others start.
    init: dict[str, Any] = {
        "initContainers": [{"name": "i", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]
    }
    assert check(deployment(replicas=2, **two, **init)).objects


def test_nodes_accounts_and_priority_are_cleared_from_pods() -> None:
    given_pod: dict[str, Any] = {
        "serviceAccountName": "admin",
        "serviceAccount": "admin",
        "priorityClassName": "system-node-critical",
        "nodeSelector": {"a": "b"},
        "nodeName": "n",
        "runtimeClassName": "r",
        "affinity": {"nodeAffinity": {"x": 1}, "podAffinity": {"y": 1}},
        "tolerations": [{"operator": "Exists"}],
    }
    obj = deployment(**given_pod)
    before = copy.deepcopy(obj)
    spec = _pod(check(obj).objects[1])
    assert obj == before
    assert spec == {
        "containers": [
            {"name": "main", "image": "example/web:1", "securityContext": {"allowPrivilegeEscalation": False}}
        ],
        "affinity": {"podAffinity": {"y": 1}},
        "tolerations": [{"operator": "Exists"}],
        "automountServiceAccountToken": False,
    }
    assert _pod(check(obj, policy=UNRESTRICTED).objects[1]) == _pod(before)


def test_metadata_that_steers_kubernetes_or_the_platform_is_removed() -> None:
    obj = deployment()
    obj["metadata"] |= {
        "finalizers": ["example.com/x"],
        "ownerReferences": [{"uid": "x"}],
        "annotations": {
            "example.com/a": "1",
            "nvca.nvcf.nvidia.io/b": "1",
            "deployment.kubernetes.io/c": "1",
        },
    }
    obj["metadata"]["labels"] |= {"app.kubernetes.io/name": "web", "pod-security.kubernetes.io/enforce": "x"}
    obj["status"] = {"readyReplicas": 1}
    found = check(obj).objects[1]
    assert found["metadata"] == {
        "name": "web",
        "labels": {"app": "web", "app.kubernetes.io/name": "web"},
        "annotations": {"example.com/a": "1"},
    }
    assert "status" not in found


def test_hooks_accounts_and_kinds_are_left_out_with_a_note() -> None:
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "c"},
    }
    hook = deployment("h", hostPID=True)
    hook["metadata"]["annotations"] = {"helm.sh/hook": "pre-install"}
    found = check(role, account, crd, hook)
    assert [each["kind"] for each in found.objects] == ["Service"]
    assert len(found.notes) == 4
    assert found.notes[0].startswith('Role "r" is left out: pods of functions have no rights')


def test_extra_kinds_are_installed_as_they_are_where_cluster_and_deployment_allow_them() -> None:
    lws = ("leaderworkerset.x-k8s.io", "v1", "LeaderWorkerSet")
    obj = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": "l", "annotations": {"leaderworkerset.sigs.k8s.io/exclusive-topology": "rack"}},
        "spec": {"leaderWorkerTemplate": {}},
    }
    assert reasons(obj)
    wanted = HelmValidationPolicy("Default", (KubernetesType(*lws),))
    assert check(obj, policy=chosen_policy(Policy(extra_types=frozenset((lws,))), wanted)).objects[1] == obj
    with pytest.raises(PolicyUnavailable, match="does not allow LeaderWorkerSet of leader"):
        chosen_policy(DEFAULT, wanted)


def test_unrestricted_holds_only_where_the_cluster_allows_it_and_the_deployment_asks_for_it() -> None:
    open_cluster = Policy(PolicyName.UNRESTRICTED)
    assert chosen_policy(open_cluster, None) == DEFAULT
    assert chosen_policy(open_cluster, HelmValidationPolicy("Unrestricted")) == UNRESTRICTED
    with pytest.raises(PolicyUnavailable, match="only the policy Default"):
        chosen_policy(DEFAULT, HelmValidationPolicy("Unrestricted"))


def test_a_chart_that_writes_itself_out_without_end_is_refused() -> None:
    level: list[Any] = ["x"] * 10
    for _ in range(10):
        level = [level] * 10
    bomb = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": level}
    assert reasons(bomb) == ["the chart renders too many or too deeply nested values: make it smaller"]
    loop: list[Any] = []
    loop.append(loop)
    assert reasons({**bomb, "data": loop})


def _attempt(objects: list[Any], policy: Policy, target: Target) -> CheckedChart | ChartRefused:
    try:
        return check_chart(objects, policy, target)
    except ChartRefused as refused:
        return refused


def _pod(obj: dict[str, Any]) -> dict[str, Any]:
    template = pod_template(obj)
    assert template is not None
    spec = template["spec"]
    assert isinstance(spec, dict)
    return spec


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.sampled_from(["", "x", "ClusterIP"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["spec", "containers", "name", "image", "metadata", "securityContext", "volumes", "template"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
KINDS = st.sampled_from(
    [("v1", "Pod"), ("apps/v1", "Deployment"), ("batch/v1", "CronJob"), ("v1", "Service"), ("", "")]
)
ANY_OBJECT = st.builds(
    lambda kind, body, name: {**body, "apiVersion": kind[0], "kind": kind[1], "metadata": {"name": name}},
    KINDS,
    st.dictionaries(st.sampled_from(["spec", "status", "data"]), JSON),
    st.sampled_from(["a", "b", ""]),
)
SWITCHES = st.fixed_dictionaries(
    {},
    optional={
        "hostNetwork": st.booleans(),
        "hostPID": st.booleans(),
        "serviceAccountName": st.just("admin"),
        "nodeName": st.just("n"),
        "automountServiceAccountToken": st.booleans(),
        "volumes": st.lists(st.sampled_from([{"name": "h", "hostPath": {}}, {"name": "e", "emptyDir": {}}])),
        "containers": st.lists(
            st.fixed_dictionaries(
                {"image": st.sampled_from(["", "x"])},
                optional={
                    "securityContext": st.fixed_dictionaries({}, optional={"privileged": st.booleans()})
                },
            ),
            max_size=3,
        ),
    },
)


@given(st.lists(ANY_OBJECT | JSON, max_size=4), st.sampled_from([DEFAULT, UNRESTRICTED]))
def test_any_chart_is_either_refused_or_installed(objects: list[Any], policy: Policy) -> None:
    found = _attempt(objects, policy, Target(namespace="sr-1", gpus=1))
    if isinstance(found, ChartRefused):
        assert all(found.reasons)
    else:
        # What is installed is accepted as it is.
        assert check_chart(found.objects, policy, Target(namespace="sr-1")).objects == found.objects


@given(SWITCHES)
def test_no_accepted_pod_can_leave_its_namespace(pod: dict[str, Any]) -> None:
    obj = deployment(**pod)
    found = _attempt([service(), obj], DEFAULT, TARGET)
    if isinstance(found, ChartRefused):
        assert all(each.startswith(POD) for each in found.reasons)
        return
    spec = _pod(found.objects[1])
    assert not {"serviceAccountName", "nodeName"} & spec.keys()
    assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    assert spec["automountServiceAccountToken"] is False
    assert not any("hostPath" in volume for volume in spec.get("volumes", ()))
    for _, each in containers(spec):
        assert each["image"]
        assert each["securityContext"]["allowPrivilegeEscalation"] is False
        assert not each["securityContext"].get("privileged")
