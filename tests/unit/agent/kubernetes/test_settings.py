"""What an agent of a cluster is to do: NVCFBackend, its overrides, flags and the command line."""

from typing import Any

import pytest

from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.backends import pod_settings
from nvcf_agent.kubernetes.flags import Flag, enabled
from nvcf_agent.kubernetes.settings import Settings, merged, parse_backend, settings_of
from nvcf_agent.options import parse_arguments

CLUSTER = "11111111-2222-4333-8444-555555555555"
SPEC: dict[str, Any] = {
    "clusterConfig": {"clusterID": CLUSTER, "clusterName": "here", "cloudProvider": "oci", "region": "eu"},
    "icmsConfig": {"icmsServiceURL": "http://gateway"},
    "agentConfig": {"natsURL": "nats://broker:4222", "workerDegradationPeriod": 60_000_000_000},
    "featureGate": {"values": ["A", "-MultiNodeWorkloads"]},
}


def read(spec: dict[str, Any], *arguments: str) -> Settings:
    options = parse_arguments(
        ["--backend", "kubernetes", "--key-file", "key", "--worker-image", "worker:1", *arguments]
    )
    backend = parse_backend({"metadata": {"name": "b"}, "spec": spec})
    return settings_of(options, backend, "b", None)


def test_the_object_says_all_and_the_command_line_wins() -> None:
    found = read(SPEC)
    assert (found.cluster_id, found.icms, found.nats) == (CLUSTER, "http://gateway", "nats://broker:4222")
    assert (found.provider, found.requests_namespace, found.degraded_seconds) == ("OCI", "nvcf-backend", 60)
    assert "A" in found.flags
    assert not found.has(Flag.MULTI_NODE)
    assert found.has(Flag.AUTO_PURGE)
    other = read(SPEC, "--icms", "http://other", "--feature-gates", "MultiNodeWorkloads,-A")
    assert (other.icms, other.has(Flag.MULTI_NODE), "A" in other.flags) == ("http://other", True, False)


def test_overrides_win_and_empty_ones_say_nothing() -> None:
    over = {
        "clusterConfig": {"clusterName": "", "region": "us"},
        "agentConfig": {"overrideEnvironmentVars": {"A": "b"}, "tolerations": [{"key": "k"}]},
    }
    found = read({**SPEC, "overrides": over})
    pods = pod_settings(found, 120.0, 7200.0)
    assert (pods.cluster_name, pods.region, pods.variables) == ("here", "us", {"A": "b"})
    assert [dict(each) for each in pods.tolerations] == [{"key": "k"}]
    assert (pods.grace, pods.ready_seconds) == (120, 7200)
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": []}) == {"a": {"b": 3, "c": 2}}


def test_function_pods_reach_the_control_plane_where_it_is() -> None:
    spec = {**SPEC, "clusterConfig": {**SPEC["clusterConfig"], "k8sClusterNetworkCIDRs": ["11.0.0.0/8"]}}
    own = ["--control-plane-namespace", "nvcf", "--monitoring-namespace", "metrics"]
    network = pod_settings(read(spec, *own, "--control-plane-range", "10.1.2.3"), 120, 7200).network
    assert network.control_plane == ("10.1.2.3/32",)
    assert network.control_plane_namespaces == {"kubernetes.io/metadata.name": "nvcf"}
    assert network.monitoring == {"kubernetes.io/metadata.name": "metrics"}
    assert "11.0.0.0/8" in network.private
    api = ["--api-server-range", "203.0.113.7", "--feature-gates", "AllowWorkloadKubernetesAPIAccess"]
    for options, is_open in ((api[:2], False), (api, True)):
        network = pod_settings(read(spec, *own, *options), 120, 7200).network
        assert (network.api_server, network.api_access) == (("203.0.113.7/32",), is_open)
    assert network.enabled
    assert not pod_settings(read(SPEC, "--no-network-policies"), 120, 7200).network.enabled
    assert not pod_settings(read(SPEC), 120, 7200).network.control_plane_namespaces


def test_what_is_missing_or_wrong_is_named() -> None:
    with pytest.raises(AgentError, match=r"--icms \(or .*icmsServiceURL\), --nats"):
        read({"clusterConfig": {"clusterID": CLUSTER}})
    with pytest.raises(AgentError, match="is no id of a cluster"):
        read({**SPEC, "clusterConfig": {"clusterID": "a b"}})
    with pytest.raises(AgentError, match=r"NVCFBackend b: .*clusterName"):
        read({"clusterConfig": {"clusterName": 5}})


def test_flags() -> None:
    assert enabled(["-AutoPurgeDegradedWorkers", " X ", "", "-X", "X"]) == {Flag.MULTI_NODE, "X"}


def test_only_processes_need_their_options_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse_arguments(["--backend", "kubernetes", "--token-file", "token"])
    assert (options.grace, options.cpu_slots, str(options.data)) == (120, 0, "/var/lib/nvcf-agent")
    with pytest.raises(SystemExit):
        parse_arguments(["--key-file", "key", "--nats", "nats://x"])
    assert "required: --icms, --cluster-id, --data" in capsys.readouterr().err
    whole = ["--key-file", "key", "--nats", "n", "--icms", "i", "--cluster-id", CLUSTER, "--data", "d"]
    options = parse_arguments(whole)
    assert (options.backend, options.grace, options.cpu_slots) == ("process", 30, 256)
