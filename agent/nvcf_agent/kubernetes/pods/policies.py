"""Network policies of function pods: accounts are apart, the internet is open, the cluster is not. Pure."""

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

from nvcf_agent.kubernetes.client.kinds import NETWORK_POLICY
from nvcf_agent.kubernetes.names import COMPONENT, MANAGED_BY, MANAGER, object_name
from nvcf_agent.kubernetes.pods import names
from nvcf_agent.kubernetes.pods.settings import Network
from nvcf_agent.kubernetes.pods.variables import HEALTH_PORT

Json = dict[str, Any]

_ALL_PODS = {MANAGED_BY: MANAGER, COMPONENT: names.INSTANCE}
_DNS = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
_EVERYTHING = ("0.0.0.0/0", "::/0")


def shared_policies(namespace: str, network: Network) -> list[Json]:
    """Return the policies of all function pods: nothing may reach them, and they reach what is allowed.

    Policies add up, so each says what is open. The kubelet's probes always pass.
    """
    deny = _policy("nvcf-default-deny", namespace, _ALL_PODS, ["Ingress", "Egress"])
    internet = [_outside(each, network) for each in _EVERYTHING]
    out: list[Json] = [{"to": internet}, {"ports": _DNS}]
    open_ranges = network.control_plane + (network.api_server if network.api_access else ())
    if open_ranges:
        out.append({"to": [{"ipBlock": {"cidr": each}} for each in open_ranges]})
    if network.control_plane_namespaces:
        out.append({"to": [_namespaces(network.control_plane_namespaces)]})
    found = [deny, _policy("nvcf-allow-egress", namespace, _ALL_PODS, ["Egress"], egress=out)]
    if network.monitoring:
        ports = [{"protocol": "TCP", "port": HEALTH_PORT}]
        into = [{"from": [_namespaces(network.monitoring)], "ports": ports}]
        found.append(_policy("nvcf-allow-monitoring", namespace, _ALL_PODS, ["Ingress"], ingress=into))
    return found


def account_policy_name(label: str) -> str:
    """Return the name of the policy of the account with this label value."""
    return object_name("nvcf-account", label)


def account_policy(label: str, namespace: str) -> Json:
    """Return the policy that lets the pods of one account reach each other."""
    own = {**_ALL_PODS, names.ACCOUNT: label}
    peers = [{"podSelector": {"matchLabels": own}}]
    return _policy(
        account_policy_name(label),
        namespace,
        own,
        ["Ingress", "Egress"],
        ingress=[{"from": peers}],
        egress=[{"to": peers}],
    )


def _outside(everything: str, network: Network) -> Json:
    """Return the internet: all addresses but private ones and the API server's."""
    whole = ip_network(everything)
    api_server = () if network.api_access else network.api_server
    closed = [each for each in (*network.private, *api_server) if ip_network(each).version == whole.version]
    return {"ipBlock": {"cidr": everything, "except": list(dict.fromkeys(closed))}}


def _namespaces(labels: Any) -> Json:
    return {"namespaceSelector": {"matchLabels": dict(labels)}}


def _policy(name: str, namespace: str, pods: Json, types: Iterable[str], **rules: list[Json]) -> Json:
    spec = {"podSelector": {"matchLabels": dict(pods)}, "policyTypes": list(types), **rules}
    return NETWORK_POLICY.new(name, namespace, {MANAGED_BY: MANAGER, COMPONENT: "network"}, spec=spec)
