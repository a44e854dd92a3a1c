"""What is added to a chart's objects, what comes before them, and what is kept of them."""

from __future__ import annotations

import argparse
import base64
import copy
import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.backends.environment import CollectorOrder, InstanceSpec, SecretTexts, WorkerTelemetry
from nvcf_agent.errors import Unsupported
from nvcf_agent.kubernetes.client.kinds import NETWORK_POLICY, ROLE_BINDING, SERVICE_ACCOUNT, Kind
from nvcf_agent.kubernetes.helm import records
from nvcf_agent.kubernetes.helm.chart import decoration, is_by_worker, parse_chart, pull_secrets
from nvcf_agent.kubernetes.helm.decorate import Decoration, decorate
from nvcf_agent.kubernetes.helm.errors import ChartError
from nvcf_agent.kubernetes.helm.kinds import Kinds
from nvcf_agent.kubernetes.helm.names import MINI_SERVICE_LABEL, mini_service_name, namespace_of
from nvcf_agent.kubernetes.helm.namespace import objects_before
from nvcf_agent.kubernetes.helm.settings import HelmSettings
from nvcf_agent.kubernetes.helm.worker import worker_objects
from nvcf_agent.kubernetes.options import extra_kind
from nvcf_agent.kubernetes.pods.settings import Network, PodSettings
from nvcf_agent.state.inventory import Limits, Share
from nvcf_proto.charts.objects import containers, pod_template
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    TelemetryEndpoint,
    TelemetryProtocol,
    TelemetryProvider,
    TelemetrySecret,
    TelemetrySettings,
    TelemetryType,
)
from tests.unit.agent.orders import order

SETTINGS = PodSettings("example.com/worker:1")
VARIABLES = {"HELM_CHART_INFERENCE_SERVICE_NAME": "web", "INFERENCE_PORT": "9000"}


def as_base64(value: object) -> str:
    """Return base64 of JSON."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def spec(variables: dict[str, str] | None = None, **launch: Any) -> InstanceSpec:
    """An instance of a chart with two GPUs."""
    given = {"process": None, "helm_chart": "oci://charts.example.com/web:1.0.0", **launch}
    message = order("sr-1", gpu="H100", variables=VARIABLES | (variables or {}), requested_gpu_count=2,
                    instance_type_value="NCP.GPU.H100", **given)  # fmt: skip
    return InstanceSpec(message, Share(), Limits(), zone="here")


def deployment(image: str = "registry.example.com/web:1", **pod: Any) -> dict[str, Any]:
    """A deployment of one container, as the rules leave it."""
    labels = {"app": "web"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "a", "image": image}], **pod},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


def test_an_instance_has_nvidias_names() -> None:
    instance = spec().instance_id
    assert (namespace_of(instance), mini_service_name(instance)) == ("sr-1", "sr-1-miniservice")


def test_pods_get_labels_variables_nodes_and_logins_and_keep_their_own() -> None:
    logins = as_base64({"k8sSecrets": [{"auths": {"registry.example.com": {"auth": "x"}, "o.example": {}}}]})
    wanted = spec({"CONTAINER_REGISTRIES_CREDENTIALS": logins})
    given = deployment(tolerations=[{"key": "own"}])
    given["spec"]["template"]["spec"]["containers"][0]["env"] = [
        {"name": "NVCF_REGION", "value": "mine"},
        {"name": "OWN", "value": "1"},
    ]
    before = copy.deepcopy(given)
    added = decoration(wanted, SETTINGS, "sr-1", "sr-1-miniservice", [given])
    [found] = decorate([given], added)
    assert given == before
    assert found["metadata"] == {
        "name": "web",
        "namespace": "sr-1",
        "labels": {"app": "web", MINI_SERVICE_LABEL: "sr-1-miniservice"},
    }
    template = found["spec"]["template"]
    assert template["metadata"]["labels"]["app"] == "web"
    assert template["metadata"]["labels"]["FUNCTION_ID"]
    pod = template["spec"]
    variables = [(each["name"], each["value"]) for each in pod["containers"][0]["env"]]
    assert ("OWN", "1") in variables
    assert [value for name, value in variables if name == "NVCF_REGION"] == [""]
    assert "secret" not in str(variables)
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert "NCP.GPU.H100" in str(terms)
    assert {"key": "own"} in pod["tolerations"]
    assert any(each["key"] == "nvidia.com/gpu" for each in pod["tolerations"])
    assert pod["imagePullSecrets"] == [{"name": "workload-regcred-0"}]
    [(_, secret)] = pull_secrets(wanted, "sr-1", "sr-1-miniservice", [given])
    # Only the logins of registries that the chart uses.
    assert json.loads(base64.b64decode(secret["data"][".dockerconfigjson"])) == {
        "auths": {"registry.example.com": {"auth": "x"}}
    }


def test_the_namespace_has_rights_policies_quota_and_an_account_before_the_chart() -> None:
    settings = HelmSettings(service_account="system/agent")
    found = objects_before("sr-1", "m", settings, Network(), gpus=2, pull_secrets=["p"])
    kinds = [kind for kind, _ in found]
    assert kinds[0] is ROLE_BINDING
    assert kinds[-1] is SERVICE_ACCOUNT
    assert all(body["metadata"]["namespace"] == "sr-1" for _, body in found)
    assert all(body["metadata"]["labels"] == {MINI_SERVICE_LABEL: "m"} for _, body in found)
    policies = [body["spec"] for kind, body in found if kind is NETWORK_POLICY]
    assert all(each["podSelector"] == {} for each in policies)
    assert found[-1][1]["automountServiceAccountToken"] is False
    without = objects_before("sr-1", "m", HelmSettings(), Network(enabled=False), gpus=0)
    assert [kind.kind for kind, _ in without] == ["ResourceQuota", "Secret", "ServiceAccount"]


def test_the_workers_pod_has_no_function_no_gpu_and_no_model() -> None:
    models = as_base64([{"name": "m", "version": "1", "uri": "https://example.com/m"}])
    found = worker_objects(spec(models=models), SETTINGS, "sr-1", "m")
    assert [each["name"] for each in found.pod["spec"]["containers"]] == ["utils"]
    assert "initContainers" not in found.pod["spec"]
    assert "nvidia.com/gpu" not in str(found.pod["spec"]["containers"])
    assert (found.pod["metadata"]["name"], found.pod["metadata"]["namespace"]) == ("utils", "sr-1")
    mounted = {each["name"] for each in found.pod["spec"]["containers"][0]["volumeMounts"]}
    assert {each["name"] for each in found.pod["spec"]["volumes"]} == mounted
    secrets = {body["metadata"]["name"]: body.get("data", {}) for _, body in found.before}
    assert secrets.keys() == {"0-sr-1-worker", "0-sr-1-secrets"}
    worker = {name: base64.b64decode(value).decode() for name, value in secrets["0-sr-1-worker"].items()}
    assert worker["HELM_CHART_NAMESPACE"] == "sr-1"
    assert worker["HELM_CHART_INFERENCE_SERVICE_NAME"] == "web"
    assert worker["NVCF_WORKER_TOKEN"] == "secret"


def collected() -> InstanceSpec:
    """An instance whose traces go through a collector."""
    endpoint = TelemetryEndpoint(
        id=new_id(),
        nca_id="account",
        name="traces",
        endpoint="https://otel.example:4318",
        protocol=TelemetryProtocol.HTTP,
        provider=TelemetryProvider.OTEL_COLLECTOR,
        types=(TelemetryType.TRACES,),
        created_at=0.0,
        secret=TelemetrySecret("key"),
        settings=TelemetrySettings(sampled_percent=10),
    )
    wish = CollectorOrder({TelemetryType.TRACES: endpoint}, SecretTexts({"key": "a$b\n"}), {"a": "b"})
    return replace(spec(), telemetry=WorkerTelemetry(collector=wish))


def test_the_collector_is_in_the_workers_pod_and_the_charts_pods_reach_it_by_a_service() -> None:
    settings = replace(SETTINGS, collector_image="otel/collector:1")
    # As after a restart of the agent.
    wanted = records.spec_of(json.loads(json.dumps(records.order_record(collected()))))
    found = worker_objects(wanted, settings, "sr-1", "m")
    (collector,) = found.pod["spec"]["initContainers"]
    assert (collector["name"], collector["image"]) == ("byoo-otel-collector", "otel/collector:1")
    objects = {(kind.kind, body["metadata"]["name"]): body for kind, body in found.before}
    service = objects["Service", "byoo-otel-collector"]
    assert found.pod["metadata"]["labels"].items() >= service["spec"]["selector"].items()
    assert service["metadata"]["labels"] == {MINI_SERVICE_LABEL: "m"}
    secret = objects["Secret", "0-sr-1-collector"]["data"]
    assert base64.b64decode(secret["key"]) in (b"a$b", b"a$$b")
    assert "0.0.0.0:14357" in objects["ConfigMap", "0-sr-1-collector"]["data"]["collector.yaml"]
    variables = decoration(wanted, settings, "sr-1", "m", []).variables
    assert variables["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] == "http://byoo-otel-collector:14357"
    without = worker_objects(wanted, SETTINGS, "sr-1", "m")
    assert "initContainers" not in without.pod["spec"]
    assert {kind.kind for kind, _ in without.before} == {"Secret"}


def test_what_an_order_says_of_its_chart() -> None:
    policy = as_base64({"name": "Unrestricted"})
    wanted = spec(configuration=as_base64({"replicas": 2}), helm_validation_policy=policy)
    chart = parse_chart(wanted.order)
    assert (chart.service, chart.port, chart.values) == ("web", 9000, {"replicas": 2})
    assert chart.policy is not None
    assert chart.policy.name == "Unrestricted"


@pytest.mark.parametrize(
    ("launch", "variables", "reason"),
    [
        ({"helm_chart": "https://example.com/web"}, {}, "is no packed chart"),
        ({"configuration": as_base64([1])}, {}, "configuration: expected an object"),
        ({"configuration": "!"}, {}, "configuration: not base64"),
        (
            {"helm_validation_policy": as_base64({"name": "x"})},
            {},
            "name: expected one of Default, Unrestricted",
        ),
        ({}, {"HELM_CHART_INFERENCE_SERVICE_NAME": ""}, "names no helmChartServiceName"),
        ({}, {"HELM_REGISTRIES_CREDENTIALS": "!"}, "HELM_REGISTRIES_CREDENTIALS"),
    ],
)
def test_orders_of_charts_that_cannot_run(launch: Any, variables: Any, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        parse_chart(spec(variables, **launch).order)


def test_an_instance_is_rendered_again_from_its_record() -> None:
    wanted = spec()
    record = json.loads(json.dumps(records.order_record(wanted)))
    found = records.spec_of(record)
    assert (found.order, found.zone, found.telemetry) == (wanted.order, "here", WorkerTelemetry())
    wrong: list[Any] = [None, {}, record | {"order": {}}]
    for broken in wrong:
        with pytest.raises(ChartError, match="cannot be read"):
            records.spec_of(broken)


def test_installed_objects_are_kept_in_a_secret_that_etcd_takes() -> None:
    rendered = records.Rendered((deployment(),), 3, ("a note",))
    secret = records.secret("n", "ns", "m", records.rendered_record(rendered))
    assert records.rendered_of(records.unpacked(secret)) == rendered
    noise = random.Random(1).randbytes(2**20).hex()
    with pytest.raises(ChartError, match="KiB compressed, more than 900"):
        records.secret("n", "ns", "m", {"objects": noise})
    with pytest.raises(ChartError, match="cannot be read"):
        records.unpacked({"metadata": {"name": "n"}, "data": {"value": "aaaa"}})


def test_what_pods_need_is_installed_before_them() -> None:
    widget = extra_kind("example.com/v1/Widget/widgets")
    assert widget == Kind("example.com", "v1", "widgets", "Widget")
    kinds = Kinds((widget,))
    mixed = ["Deployment", "Service", "ConfigMap", "Widget", "Pod", "PersistentVolumeClaim"]
    groups = {"Deployment": "apps/v1", "Widget": "example.com/v1"}
    objects: list[dict[str, Any]] = [
        {"apiVersion": groups.get(each, "v1"), "kind": each, "metadata": {"name": "x"}} for each in mixed
    ]
    ordered = [each["kind"] for each in sorted(objects, key=kinds.rank)]
    assert ordered == ["ConfigMap", "PersistentVolumeClaim", "Service", "Deployment", "Pod", "Widget"]
    for wrong in ("example.com/v1/Widget", "a/b/c/", "a/b/c/d/e"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected GROUP"):
            extra_kind(wrong)


def test_a_chart_says_in_a_config_map_that_only_the_worker_counts() -> None:
    def chart(text: str) -> list[dict[str, Any]]:
        body = {
            "kind": "ConfigMap",
            "metadata": {"name": "nvcf-workload-config"},
            "data": {"config.yaml": text},
        }
        return [deployment(), body]

    assert is_by_worker(chart("featureFlags: {StatusByWorkerReadiness: true}"))
    for text in (
        "",
        "featureFlags: {StatusByWorkerReadiness: false}",
        "a: [",
        "- " * 100_000,
        "featureFlags: 1",
    ):
        assert not is_by_worker(chart(text))


NAMES = st.sampled_from(["A", "B", "NVCF_ENV"])
VALUES = st.lists(st.fixed_dictionaries({"name": NAMES, "value": st.text(max_size=3)}), max_size=4)


@given(st.lists(VALUES, max_size=3), st.dictionaries(NAMES, st.just("ours"), max_size=2))
def test_the_platforms_variables_win_and_others_stay(given_env: list[Any], ours: dict[str, str]) -> None:
    names = [{"name": str(n), "image": "i", "env": env} for n, env in enumerate(given_env)]
    [found] = decorate([deployment(containers=names)], Decoration("m", "ns", variables=ours))
    pod = (pod_template(found) or {})["spec"]
    for (_, container), env in zip(containers(pod), given_env, strict=True):
        got = [(each["name"], each["value"]) for each in container["env"]]
        assert got == [
            *ours.items(), *((each["name"], each["value"]) for each in env if each["name"] not in ours)
        ]  # fmt: skip
