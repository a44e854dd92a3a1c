"""What the charts render: valid objects, command lines that the programs take, pods with few rights."""

from __future__ import annotations

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from nvcf_agent.kubernetes.registration import parse_arguments as registration_arguments
from nvcf_agent.options import parse_arguments as agent_arguments
from nvcf_autoscaler.__main__ import parse_arguments as autoscaler_arguments
from nvcf_broker.node import parse_arguments as node_arguments
from nvcf_gateway.config import parse_arguments as gateway_arguments
from nvcf_gateway.installation import parse_arguments as installation_arguments
from tests.kubernetes.charts.rendering import (
    AGENT_VALUES,
    CASES,
    CONTROL_PLANE_VALUES,
    ROOT,
    Object,
    flags,
    helm,
    one,
    pod_of,
    render,
    rendered,
    values_of,
)

OLDEST = "1.30"
"""Of Kubernetes that the charts are for; newer objects are tried with the API server of the tests."""
FOREIGN = {"NVCFBackend", "ServiceMonitor", "PrometheusRule", "HTTPRoute", "GRPCRoute"}
WITH_TOKEN = {"nvcf-setup", "nvcf-agent", "nvcf-agent-registration", "nvcf-agent-test-healthy"}
"""Objects whose pods call the Kubernetes API."""


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def arguments_of(objects: tuple[Object, ...], kind: str, name: str, container: str) -> list[str]:
    pod = pod_of(one(objects, kind, name))
    assert pod is not None
    [found] = [each for each in containers(pod) if each["name"] == container]
    return list(found["args"])


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_lint(chart: str, case: str) -> None:
    done = helm("lint", "--strict", f"charts/{chart}", *flags(values_of(chart, case)))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_objects_are_valid(chart: str, case: str) -> None:
    names = set()
    for each in rendered(chart, case):
        key = (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        assert key not in names, "two objects of one name"
        names.add(key)
        if each["kind"] not in FOREIGN:
            kubernetes_validate.validate(each, OLDEST, strict=True)


@pytest.mark.parametrize(("chart", "case"), CASES)
def test_pods_have_few_rights(chart: str, case: str) -> None:
    pods = [(each, pod) for each in rendered(chart, case) if (pod := pod_of(each)) is not None]
    assert pods
    for found, pod in pods:
        name = found["metadata"]["name"]
        security = pod["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is (name in WITH_TOKEN), name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert "memory" in container["resources"]["limits"], name
            assert not container["image"].endswith(":latest"), name
            assert ":" in container["image"].rpartition("/")[2], name


@pytest.mark.parametrize("case", CONTROL_PLANE_VALUES)
def test_the_programs_take_their_command_lines(case: str) -> None:
    objects = rendered("nvcf", case)
    gateway = gateway_arguments(arguments_of(objects, "Deployment", "nvcf-gateway", "gateway"))
    nodes = {"three-nodes": 3, "own-broker": 3}.get(case, 1)
    assert gateway.replicas == nodes
    assert (gateway.drain, gateway.grace) == (10, 60)
    grace = one(objects, "Deployment", "nvcf-gateway")["spec"]["template"]["spec"][
        "terminationGracePeriodSeconds"
    ]
    assert grace >= gateway.drain + gateway.grace + 20, "time to close everything afterwards"
    autoscaler = autoscaler_arguments(arguments_of(objects, "Deployment", "nvcf-autoscaler", "autoscaler"))
    assert (autoscaler.replicas, autoscaler.nats) == (nodes, gateway.nats)
    assert autoscaler.regions == gateway.regions
    if case != "own-broker":
        node = node_arguments(arguments_of(objects, "StatefulSet", "nvcf-nats", "configuration"))
        assert len(node.nodes.split(",")) == nodes
        assert node.sync_always is (nodes == 1)
        assert gateway.nats.startswith("tls://" if node.tls_cert else "nats://")
    if case != "own-secrets":
        setup = installation_arguments(arguments_of(objects, "Job", "nvcf-setup", "setup"))
        assert (setup.name, setup.namespace) == ("nvcf", "nvcf")


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("defaults", "http://$(POD_IP):8080"),
        ("everything", "https://10-1-2-3.nvcf-gateway-pods.nvcf.svc.cluster.local:8080"),
    ],
)
def test_a_certificate_can_have_the_name_of_each_gateway_pod(
    case: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POD_IP", "10.1.2.3")
    objects = rendered("nvcf", case)
    gateway = gateway_arguments(arguments_of(objects, "Deployment", "nvcf-gateway", "gateway"))
    assert gateway.attach_url == expected
    services = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Service"}
    assert ("nvcf-gateway-pods" in services) is (case == "everything")
    if case == "everything":
        service = services["nvcf-gateway-pods"]["spec"]
        assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
        assert service["selector"] == services["nvcf-gateway"]["spec"]["selector"]
        assert gateway.session_proxy_url == expected.replace("8080", "8091/v1/proxy")


@pytest.mark.parametrize("case", AGENT_VALUES)
def test_the_agent_takes_its_command_line(case: str) -> None:
    written = arguments_of(rendered("nvcf-agent", case), "Deployment", "nvcf-agent", "agent")
    options = agent_arguments([each.replace("$(NVCF_CLUSTER_ID)", "6f1d") for each in written])
    assert (options.backend, options.backend_object) == ("kubernetes", "nvcf-agent")
    assert options.worker_image == "nvcf-worker:0.1.0"
    assert (options.token_file is not None) is (case == "token")
    # Without the Job its id is in the NVCFBackend, as all other settings are.
    assert (options.cluster_id is None) is (case in ("token", "key"))


@pytest.mark.parametrize(
    ("url", "namespace"),
    [
        ("http://nvcf-gateway.nvcf.svc.cluster.local:8080", "nvcf"),
        ("http://gateway.gpu.svc", "gpu"),
        ("https://api.example", None),
        ("http://10.1.2.3:8080", None),
    ],
)
def test_function_pods_may_reach_a_control_plane_of_this_cluster(url: str, namespace: str | None) -> None:
    objects = tuple(render("nvcf-agent", (*AGENT_VALUES["token"], f"controlPlane.url={url}")))
    options = agent_arguments(arguments_of(objects, "Deployment", "nvcf-agent", "agent"))
    assert options.control_plane_namespace == namespace


@pytest.mark.parametrize("case", [case for case in AGENT_VALUES if case not in ("token", "key")])
def test_the_registration_takes_its_command_line(case: str) -> None:
    job = arguments_of(rendered("nvcf-agent", case), "Job", "nvcf-agent-registration", "registration")
    options = registration_arguments(job)
    assert (options.name, options.secret, options.namespace) == ("gpu-a", "nvcf-agent-cluster", "nvca-system")


def test_only_who_needs_a_secret_has_it() -> None:
    objects = rendered("nvcf", "defaults")
    entries: dict[str, set[str]] = {}
    for each in objects:
        if (pod := pod_of(each)) is not None:
            for volume in pod.get("volumes", []):
                if (secret := volume.get("secret")) is not None:
                    listed = [item["key"] for item in secret.get("items", [{"key": "all"}])]
                    entries.setdefault(each["metadata"]["name"], set()).update(
                        f"{secret['secretName']}/{key}" for key in listed
                    )
    assert entries == {
        "nvcf-gateway": {
            "nvcf-signing/all", "nvcf-sealing/all", "nvcf-admin/bootstrap-keys.json",
            "nvcf-broker/platform.credentials", "nvcf-broker/control.credentials",
            "nvcf-broker/system.credentials", "nvcf-broker/callout.seed",
        },
        "nvcf-autoscaler": {"nvcf-broker/platform.credentials", "nvcf-broker/control.credentials"},
        "nvcf-nats": {"nvcf-broker/all"},
    }  # fmt: skip


def test_an_agent_shows_a_token_for_its_own_cluster_only() -> None:
    pod = pod_of(one(rendered("nvcf-agent", "token"), "Deployment", "nvcf-agent"))
    assert pod is not None
    [token] = [each["projected"] for each in pod["volumes"] if "projected" in each]
    assert token["sources"][0]["serviceAccountToken"]["audience"] == "nvcf-icms:6f1d"
    assert not any("secret" in each for each in pod["volumes"])


def test_what_an_operator_says_wins_in_the_backend() -> None:
    backend = one(rendered("nvcf-agent", "everything"), "NVCFBackend", "nvcf-agent")
    assert backend["spec"]["featureGate"] == {"values": ["-HelmRBACEnforcement"]}
    assert backend["spec"]["clusterConfig"]["gpuDiscovery"] == {"static": {"gpuConfig": "[]"}}


def test_rules_and_dashboards_are_those_of_the_repository() -> None:
    objects = rendered("nvcf", "operators")
    written = yaml.safe_load((ROOT / "otel/prometheus/alerts.yml").read_text())["groups"]
    groups = one(objects, "PrometheusRule", "nvcf")["spec"]["groups"]
    assert all(group in groups for group in written)
    boards = {each.name for each in (ROOT / "otel/dashboards").glob("*.json")}
    found = {key for each in objects if each["kind"] == "ConfigMap" for key in each["data"]}
    assert found == boards


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ((), "nvcf-gateway:0.1.0"),
        (("image.registry=r.example/x", "image.tag=v2"), "r.example/x/nvcf-gateway:v2"),
        (("gateway.image.registry=other", "gateway.image.tag=v3"), "other/nvcf-gateway:v3"),
        ((f"gateway.image.digest=sha256:{'a' * 64}",), f"nvcf-gateway@sha256:{'a' * 64}"),
    ],
)
def test_names_of_images(image: tuple[str, ...], expected: str) -> None:
    done = helm("template", "nvcf", "charts/nvcf", *flags(image), "-s", "templates/gateway/deployment.yaml")
    assert f"image: {expected}\n" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("chart", "wrong", "said"),
    [
        ("nvcf", ("gateway.drian=5",), "drian"),
        ("nvcf", ("nats.replicas=2",), "/nats/replicas"),
        ("nvcf", ("nats.enabled=false",), "/nats/external/urls"),
        ("nvcf", ("nats.storage.size=much",), "/nats/storage/size"),
        ("nvcf", ("gatewayApi.enabled=true",), "/gatewayApi/parentRefs"),
        ("nvcf", ("gateway.image.digest=abc",), "/gateway/image/digest"),
        ("nvcf", ("workers.sidecarImages.other=a",), "invalid propertyName 'other'"),
        ("nvcf-agent", (), "controlPlane.url is needed"),
        ("nvcf-agent", (*AGENT_VALUES["job"], "registration.adminKeySecret="), "adminKeySecret is needed"),
        ("nvcf-agent", (*AGENT_VALUES["job"], "namespaces.requests=sr-x"), "/namespaces/requests"),
        ("nvcf-agent", (*AGENT_VALUES["token"], "registration.clusterId="), "clusterId is needed"),
        ("nvcf-agent", (*AGENT_VALUES["job"], "cluster.cloudProvider=HOME"), "/cluster/cloudProvider"),
    ],
)
def test_wrong_values_are_named(chart: str, wrong: tuple[str, ...], said: str) -> None:
    done = helm("template", chart, f"charts/{chart}", *flags(wrong))
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize("chart", ["nvcf", "nvcf-agent"])
def test_the_readme_has_all_values(chart: str) -> None:
    text = (ROOT / "charts" / chart / "README.md").read_text()
    named = set(re.findall(r"[A-Za-z]+", text))
    values = yaml.safe_load((ROOT / "charts" / chart / "values.yaml").read_text())
    for top, value in values.items():
        assert top in named, top
        for name in value if isinstance(value, dict) else ():
            assert name in named, f"{top}.{name}"


def test_packages_hold_no_links(tmp_path: Path) -> None:
    done = helm("package", "--destination", str(tmp_path), "charts/nvcf", "charts/nvcf-agent")
    assert done.returncode == 0, done.stderr
    package = next(tmp_path.glob("nvcf-0*.tgz"))
    done = helm("template", "nvcf", str(package), *flags(values_of("nvcf", "operators")))
    assert "NvcfHighErrorRate" in done.stdout
    assert "symbolic" not in done.stderr
