"""What the namespace of a MiniService has before the chart's objects come. Pure."""

from collections.abc import Iterable, Mapping

from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.client.kinds import (
    NAMESPACE,
    NETWORK_POLICY,
    RESOURCE_QUOTA,
    ROLE_BINDING,
    SECRET,
    SERVICE_ACCOUNT,
    Kind,
)
from nvcf_agent.kubernetes.helm.names import FUNCTION_SECRETS, MINI_SERVICE_LABEL
from nvcf_agent.kubernetes.helm.settings import HelmSettings
from nvcf_agent.kubernetes.names import MANAGED_BY, MANAGER
from nvcf_agent.kubernetes.pods.policies import shared_policies
from nvcf_agent.kubernetes.pods.render import encoded
from nvcf_agent.kubernetes.pods.settings import Network
from nvcf_proto.charts.rules import GPU_RESOURCES

RESTRICTIONS = "mini-service-restrictions"
QUOTA = "max-gpus"
_POD_SECURITY = "pod-security.kubernetes.io/enforce"


def namespace_object(name: str, mini_service: str, labels: Mapping[str, str], *, restricted: bool) -> Object:
    """Return the namespace. With `restricted` the API server refuses pods that could leave it, too."""
    own = {MANAGED_BY: MANAGER, MINI_SERVICE_LABEL: mini_service}
    security = {_POD_SECURITY: "baseline"} if restricted else {}
    return NAMESPACE.new(name, labels={**labels, **own, **security})


def objects_before(
    namespace: str,
    mini_service: str,
    settings: HelmSettings,
    network: Network,
    *,
    gpus: int,
    pull_secrets: Iterable[str] = (),
    files: Mapping[str, str] | None = None,
) -> list[tuple[Kind, Object]]:
    """Return rights, policies, quota and account of a namespace, in the order in which they are applied.

    `files` are certificates of the function's telemetry.
    """
    rights = [(ROLE_BINDING, _rights(settings))] if settings.service_account else []
    quota = {f"requests.{resource}": str(gpus) for resource in GPU_RESOURCES}
    pulls = [{"name": name} for name in pull_secrets]
    listed: list[tuple[Kind, Object]] = [
        *rights,
        *((NETWORK_POLICY, each) for each in _policies(namespace, network)),
        (RESOURCE_QUOTA, RESOURCE_QUOTA.new(QUOTA, spec={"hard": quota})),
        # What else is in it comes from the control plane, now and later.
        (SECRET, SECRET.new(FUNCTION_SECRETS, type="Opaque", **_data(files or {}))),
        # Made here because pods are refused until it is there. No pod gets a token of it.
        (
            SERVICE_ACCOUNT,
            SERVICE_ACCOUNT.new("default", automountServiceAccountToken=False, imagePullSecrets=pulls),
        ),
    ]
    own = {"namespace": namespace, "labels": {MINI_SERVICE_LABEL: mini_service}}
    return [(kind, {**body, "metadata": {**body["metadata"], **own}}) for kind, body in listed]


def _data(files: Mapping[str, str]) -> Object:
    return {"data": {name: encoded(text) for name, text in files.items()}} if files else {}


def _rights(settings: HelmSettings) -> Object:
    namespace, _, name = settings.service_account.partition("/")
    role = {"apiGroup": ROLE_BINDING.group, "kind": "ClusterRole", "name": settings.role}
    subject = {"kind": "ServiceAccount", "namespace": namespace, "name": name}
    return ROLE_BINDING.new(RESTRICTIONS, roleRef=role, subjects=[subject])


def _policies(namespace: str, network: Network) -> list[Object]:
    """Return the policies of function pods for all pods of the namespace, which may reach each other."""
    if not network.enabled:
        return []
    everyone: Object = {"podSelector": {}}
    shared = [{**each, "spec": {**each["spec"], **everyone}} for each in shared_policies(namespace, network)]
    rules = {"ingress": [{"from": [everyone]}], "egress": [{"to": [everyone]}]}
    spec = {**everyone, "policyTypes": ["Ingress", "Egress"], **rules}
    return [*shared, NETWORK_POLICY.new("nvcf-allow-namespace", spec=spec)]
