"""The objects of a container instance: what they hold, what they never hold, and that they are valid."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvcf_agent.backends.environment import WorkerTelemetry
from nvcf_agent.errors import Unsupported
from nvcf_agent.kubernetes import names as common
from nvcf_agent.kubernetes.client.kinds import SECRET
from nvcf_agent.kubernetes.pods import names
from nvcf_agent.kubernetes.pods.policies import account_policy, shared_policies
from nvcf_agent.kubernetes.pods.render import PodObjects, render
from nvcf_agent.kubernetes.pods.settings import Network
from nvcf_agent.state.inventory import Limits
from tests.unit.agent.kubernetes.pods import (
    IMAGE,
    SETTINGS,
    TOKEN,
    WORKER,
    decoded,
    logins,
    packed,
    spec,
)

VERSION = "1.35"
ID = "5f0f9a3c-6a43-4a4e-9a3e-2b5b7c1d0e01"


def check(objects: PodObjects) -> None:
    for body in (objects.pod, *(body for _, body in objects.before)):
        kubernetes_validate.validate(body, VERSION, strict=True)
    check_names(objects)


def check_names(objects: PodObjects) -> None:
    for body in (objects.pod, *(body for _, body in objects.before)):
        assert common._NAME.fullmatch(body["metadata"]["name"]), body["metadata"]["name"]


def container(objects: PodObjects, name: str) -> dict[str, Any]:
    pod = objects.pod["spec"]
    return next(each for each in [*pod.get("initContainers", ()), *pod["containers"]] if each["name"] == name)


def secrets(objects: PodObjects) -> dict[str, dict[str, str]]:
    """Return the values of all Secrets by name."""
    return {body["metadata"]["name"]: decoded(body) for kind, body in objects.before if kind is SECRET}


def environment(objects: PodObjects, name: str) -> dict[str, str]:
    """Return the variables of a container."""
    found: dict[str, str] = {}
    for source in container(objects, name)["envFrom"]:
        found |= secrets(objects)[source["secretRef"]["name"]]
    assert "env" not in container(objects, name)
    return found


def test_a_pod_has_the_function_and_its_worker() -> None:
    objects = render(spec(ID), SETTINGS)
    check(objects)
    pod = objects.pod
    assert pod["metadata"]["name"] == f"0-sr-{ID}"
    assert [each["name"] for each in pod["spec"]["containers"]] == ["inference", "utils"]
    assert [each["image"] for each in pod["spec"]["containers"]] == [IMAGE, WORKER]
    assert "initContainers" not in pod["spec"]
    inference = container(objects, "inference")
    assert inference["resources"] == {
        "requests": {"nvidia.com/gpu": "2"},
        "limits": {"nvidia.com/gpu": "2"},
    }
    assert "startupProbe" not in inference
    assert inference["lifecycle"]["preStop"]["httpGet"] == {"path": "/v1/health/drained", "port": 8080}
    assert inference["readinessProbe"]["httpGet"] == {"path": "/v1/health/live", "port": 8080}
    utils = container(objects, "utils")
    assert utils["startupProbe"]["failureThreshold"] * utils["startupProbe"]["periodSeconds"] == 60
    assert utils["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["terminationGracePeriodSeconds"] == 120
    assert pod["spec"]["restartPolicy"] == "Always"
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["enableServiceLinks"] is False
    term = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["nodeSelectorTerms"][0]["matchExpressions"] == [
        {"key": "nvca.nvcf.nvidia.io/instance-type", "operator": "In", "values": ["NCP.GPU.H100"]}
    ]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"][
        "tolerations"
    ]


def test_labels_and_annotations_are_nvidias() -> None:
    made = spec(ID, message_batch_id="batch", deployment_id="d", gpu_specification_id="g", cluster_group="cg")
    metadata = render(made, SETTINGS).pod["metadata"]
    said = metadata["labels"]
    assert said["nca-id"] == said["NCA_ID"] == "nca-account-nca"
    assert said["icms-request-id"] == ID
    assert said["gpu-name"] == "H100"
    assert said["GPU_COUNT"] == "2"
    assert said["nvcf.nvidia.io/message-batch-id"] == "batch"
    assert said["nvcf.nvidia.io/deployment-id"] == "d"
    assert said["nvcf.nvidia.io/gpu-specification-id"] == "g"
    assert said["FUNCTION_ID"] == said["function-id"]
    assert metadata["annotations"]["nvcf.nvidia.io/instance-type-name"] == "NCP.GPU.H100_2x"
    assert metadata["annotations"]["nvcf.nvidia.io/backend"] == "here"
    assert metadata["annotations"]["icms-cluster-group"] == "cg"
    found = names.instance_of({"metadata": metadata})
    assert found is not None
    assert found.instance_id == f"0-sr-{ID}"
    assert found.version_id == said["function-version-id"]


def test_the_function_has_no_credential_beside_its_worker() -> None:
    given_ = {"SECRETS_ASSERTION_TOKEN": "assertion", "TRACING_ACCESS_TOKEN": "tracing"}
    objects = render(spec(ID, variables=given_), SETTINGS)
    assert "NVCF_WORKER_TOKEN" not in environment(objects, "inference")
    assert environment(objects, "utils")["NVCF_WORKER_TOKEN"] == TOKEN
    text = json.dumps(objects.pod)
    for secret in (TOKEN, "assertion", "tracing"):
        assert secret not in text


def test_in_library_mode_the_function_has_its_worker_and_no_sidecar() -> None:
    given_ = {"SECRETS_ASSERTION_TOKEN": "assertion", "CONTAINER_REGISTRIES_CREDENTIALS": logins("a.b")}
    objects = render(spec(ID, variables=given_, worker_mode="library"), SETTINGS)
    check(objects)
    assert [each["name"] for each in objects.pod["spec"]["containers"]] == ["inference"]
    variables = environment(objects, "inference")
    assert variables["NVCF_WORKER_TOKEN"] == TOKEN
    assert variables["INSTANCE_ID"] == f"0-sr-{ID}"
    assert variables["NVCF_GRACE_SECONDS"] == "115"
    assert "SECRETS_ASSERTION_TOKEN" not in variables
    assert "CONTAINER_REGISTRIES_CREDENTIALS" not in variables
    inference = container(objects, "inference")
    assert inference["startupProbe"]["failureThreshold"] == 7200
    assert inference["readinessProbe"]["httpGet"]["path"] == "/v1/health/ready"
    assert "lifecycle" not in inference


def test_the_platforms_variables_win_over_the_functions() -> None:
    own = [
        {"key": "NVCF_REGION", "value": "mine"},
        {"key": "INSTANCE_ID", "value": "mine"},
        {"key": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "mine"},
        {"key": "NVCF_WORKER_TOKEN", "value": "mine"},
        {"key": "MODEL", "value": "m"},
    ]
    telemetry = WorkerTelemetry(variables={"OTEL_EXPORTER_OTLP_ENDPOINT": "operator", "OTEL_X": "1"})
    for mode, token in (("sidecar", "mine"), ("library", TOKEN)):
        made = spec(ID, variables={"INFERENCE_CONTAINER_ENV": packed(own)}, worker_mode=mode)
        variables = environment(render(replace(made, telemetry=telemetry), SETTINGS), "inference")
        assert variables["NVCF_REGION"] == "us-west-1"
        assert variables["INSTANCE_ID"] == f"0-sr-{ID}"
        assert variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "mine"
        assert variables["OTEL_X"] == "1"
        assert variables["NVCF_WORKER_TOKEN"] == token
        assert variables["MODEL"] == "m"


def test_overrides_of_the_cluster_win_over_the_message() -> None:
    settings = replace(SETTINGS, variables={"NVCF_FQDN_GRPC": "inside:10086"})
    assert environment(render(spec(ID), settings), "utils")["NVCF_FQDN_GRPC"] == "inside:10086"


def test_images_are_pulled_with_the_logins_of_their_registries_alone() -> None:
    variables = {
        "CONTAINER_REGISTRIES_CREDENTIALS": logins(
            "registry.example", "https://other.example/v1/", "nvcr.io"
        ),
        "SIDECAR_REGISTRY_CREDENTIAL": packed({"auths": {"registry.example": {}, "nvcr.io": {}}}),
    }
    objects = render(spec(ID, variables=variables), replace(SETTINGS, pull_secrets=("all",)))
    check(objects)
    used = [each["name"] for each in objects.pod["spec"]["imagePullSecrets"]]
    assert used == [f"workload-sr-{ID}-regcred-0", f"worker-sr-{ID}-regcred-0", "all"]
    for name in used[:2]:
        auths = json.loads(secrets(objects)[name][".dockerconfigjson"])["auths"]
        assert list(auths) == ["registry.example"]
    hub = render(spec(ID, variables=variables, container_image="library/python:3"), SETTINGS)
    assert [each["name"] for each in hub.pod["spec"]["imagePullSecrets"]] == [f"worker-sr-{ID}-regcred-0"]


def test_a_worker_of_another_make_runs_as_nvidias_agent_runs_it() -> None:
    variables = {"UTILS_CONTAINER": "nvcr.io/x/worker:2", "INIT_CONTAINER": "nvcr.io/x/init:2"}
    objects = render(spec(ID, variables=variables), SETTINGS)
    check(objects)
    utils, init = container(objects, "utils"), container(objects, "init")
    assert utils["image"] == "nvcr.io/x/worker:2"
    assert utils["securityContext"]["capabilities"] == {"drop": ["NET_RAW"]}
    assert "args" not in utils
    assert "args" not in init
    assert environment(objects, "init")["NVCF_WORKER_TOKEN"] == TOKEN
    assert not {"lifecycle", "readinessProbe"} & set(container(objects, "inference"))


def test_the_own_worker_of_another_version_is_known() -> None:
    objects = render(
        spec(ID, variables={"UTILS_CONTAINER": "registry.example/nvcf/worker:9@sha256:1"}), SETTINGS
    )
    assert "lifecycle" in container(objects, "inference")


def test_models_are_fetched_first_with_the_accounts_logins_and_no_token() -> None:
    models = [
        {"name": "m", "version": "1", "uri": "oci://nvcr.io/x/m:1"},
        {"name": "offered", "llmConfig": {}},
    ]
    variables = {"ARTIFACT_REGISTRIES_CREDENTIALS": logins("nvcr.io")}
    objects = render(spec(ID, variables=variables, models=packed(models)), SETTINGS)
    check(objects)
    init = container(objects, "init")
    assert init["image"] == WORKER
    assert init["args"][0] == "fetch"
    assert "envFrom" not in init
    files = secrets(objects)[f"0-sr-{ID}-artifacts"]
    assert json.loads(files["artifacts.json"]) == {"models": models[:1], "resources": []}
    assert list(json.loads(files["config.json"])["auths"]) == ["nvcr.io"]


def test_limits_of_the_instance_type_hold_for_the_function() -> None:
    made = replace(spec(ID, gpus=0), limits=Limits(memory=2**30, cpus=0.5))
    objects = render(made, SETTINGS)
    assert container(objects, "inference")["resources"]["limits"] == {"memory": "1073741824", "cpu": "500m"}
    assert "affinity" not in objects.pod["spec"]


def test_a_function_on_port_8080_keeps_it() -> None:
    objects = render(spec(ID, variables={"INFERENCE_PORT": "8080"}), SETTINGS)
    assert environment(objects, "utils")["HEALTH_PORT"] == "18080"
    assert container(objects, "utils")["livenessProbe"]["httpGet"]["port"] == 18080
    library = render(spec(ID, variables={"INFERENCE_PORT": "8080"}, worker_mode="library"), SETTINGS)
    assert environment(library, "inference")["HEALTH_PORT"] == "18080"


def test_the_restricted_level_is_met_where_the_image_may_not_run_as_root() -> None:
    objects = render(spec(ID), replace(SETTINGS, run_as_non_root=True))
    assert objects.pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in objects.pod["spec"]["containers"]:
        security = each["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"]["drop"] == ["ALL"]
        assert security["runAsNonRoot"] is True


def test_everything_goes_with_the_request() -> None:
    owner = {
        "apiVersion": "nvca.nvcf.nvidia.io/v2beta1",
        "kind": "ICMSRequest",
        "metadata": {"name": "sr-1", "uid": "u"},
    }
    objects = render(spec(ID), SETTINGS, owner=owner)
    check(objects)
    for body in (objects.pod, *(body for _, body in objects.before)):
        assert body["metadata"]["ownerReferences"][0]["uid"] == "u"
        assert body["metadata"]["labels"][names.REQUEST] == f"sr-{ID}"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"variables": {"INFERENCE_CONTAINER_ARGS": "'open"}}, "malformed"),
        ({"container_image": None}, "no container image"),
        ({"variables": {"INFERENCE_CONTAINER_ENV": "?"}}, "INFERENCE_CONTAINER_ENV"),
        ({"models": packed({"a": 1})}, "models"),
    ],
)
def test_orders_that_cannot_run_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        render(spec(ID, **changes), SETTINGS)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=30)


@settings(max_examples=40)  # each is validated with the whole schema of a pod
@given(
    request_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", fullmatch=True),
    account=st.from_regex(r"[a-zA-Z0-9_.:@-]{1,128}", fullmatch=True),
    variables=st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True), texts, max_size=6
    ),
    arguments=st.lists(texts, max_size=4),
    library=st.booleans(),
    batch=texts,
    gpus=st.integers(0, 8),
)
def test_every_order_gives_valid_objects(
    request_id: str,
    account: str,
    variables: dict[str, str],
    arguments: list[str],
    library: bool,
    batch: str,
    gpus: int,
) -> None:
    own = packed([{"key": name, "value": value} for name, value in variables.items()])
    made = spec(
        request_id,
        gpus=gpus,
        variables={"INFERENCE_CONTAINER_ENV": own, "INFERENCE_CONTAINER_ARGS": shlex.join(arguments)},
        nca_id=account,
        worker_mode="library" if library else None,
        message_batch_id=batch or None,
    )
    objects = render(made, SETTINGS)
    check_names(objects)
    kubernetes_validate.validate(objects.pod, VERSION, strict=True)
    assert container(objects, "inference").get("args", []) == arguments
    for name, value in objects.pod["metadata"]["labels"].items():
        assert common.label_value(value) == value, (name, value)
    found = environment(objects, "inference")
    assert variables.keys() <= found.keys()
    assert ("NVCF_WORKER_TOKEN" in found) == (library or "NVCF_WORKER_TOKEN" in variables)
    assert TOKEN not in json.dumps(objects.pod["spec"]["containers"])
    back = names.instance_of(objects.pod)
    assert back is not None
    assert back.instance_id == made.instance_id
    assert names.request_of(made.instance_id) == objects.pod["metadata"]["labels"][names.REQUEST]
    assert common._NAME.fullmatch(account_policy(common.account_label(account), "n")["metadata"]["name"])


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_object_names_are_labels_and_differ(one: str, other: str) -> None:
    assert common._NAME.fullmatch(common.object_name(one))
    if one != other:
        assert common.object_name(one) != common.object_name(other)


def test_accounts_are_apart_and_the_api_server_is_closed() -> None:
    network = Network(
        control_plane=("10.1.0.0/16",),
        control_plane_namespaces={"kubernetes.io/metadata.name": "nvcf"},
        monitoring={"kubernetes.io/metadata.name": "monitoring"},
        api_server=("203.0.113.7/32",),
    )
    policies = {each["metadata"]["name"]: each for each in shared_policies("nvcf-backend", network)}
    for each in (*policies.values(), account_policy("nca-x-nca", "nvcf-backend")):
        kubernetes_validate.validate(each, VERSION, strict=True)
    deny = policies["nvcf-default-deny"]["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    assert "egress" not in deny
    internet = policies["nvcf-allow-egress"]["spec"]["egress"][0]["to"][0]["ipBlock"]
    assert {"203.0.113.7/32", "10.0.0.0/8", "169.254.0.0/16"} <= set(internet["except"])
    own = account_policy("nca-x-nca", "nvcf-backend")["spec"]
    assert own["ingress"][0]["from"][0]["podSelector"]["matchLabels"]["nca-id"] == "nca-x-nca"
    opened = shared_policies("nvcf-backend", replace(network, api_access=True))[1]["spec"]["egress"]
    assert {"ipBlock": {"cidr": "203.0.113.7/32"}} in opened[2]["to"]
