"""Charts rendered by helm, as dictionaries."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.kubernetes.cluster import programs

ROOT = Path(__file__).parents[3]
NAMESPACES = {"nvcf": "nvcf", "nvcf-agent": "nvca-system"}
Object = dict[str, Any]

CONTROL_PLANE_VALUES: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "three-nodes": ("nats.replicas=3", "nats.tls.secretName=nats-tls"),
    "own-broker": ("nats.enabled=false", "nats.external.urls=tls://broker.example:4222",
                   "nats.external.caSecretName=ca", "nats.external.replicas=3"),
    "own-secrets": ("secrets.create=false", "secrets.signing=a", "secrets.sealing=b", "secrets.broker=c",
                    "secrets.admin=d"),
    "everything": (
        "gateway.sessions.enabled=true", "gateway.tls.secretName=tls", "gateway.dashboard=false",
        "gateway.wideInbox=true", "gateway.quotas[0]=functions=5", "regions={local,east}",
        "image.registry=registry.example/nvcf", "image.pullSecrets[0].name=login",
        "workers.sidecarImages.utils=registry.example/worker:1", "workers.sidecarRegistrySecret=login",
        "telemetry.endpoint=http://collector:4317", "telemetry.headersSecretName=otel",
        "ingress.enabled=true", "ingress.host=api.example", "ingress.tlsSecretName=ingress",
        "gateway.tolerations[0].operator=Exists", "gateway.priorityClassName=high",
        "gateway.podAnnotations.a=b",
    ),
    "operators": ("serviceMonitor.enabled=true", "prometheusRule.enabled=true", "dashboards.enabled=true",
                  "gatewayApi.enabled=true", "gatewayApi.parentRefs[0].name=public"),
    "small": ("gateway.autoscaling.enabled=false", "networkPolicy.enabled=false",
              "gateway.podDisruptionBudget.enabled=false", "nats.podDisruptionBudget.enabled=false"),
}  # fmt: skip
_REACHES = ("controlPlane.url=http://gateway:8080", "controlPlane.natsUrl=nats://nats:4222")
_JOB = (*_REACHES, "cluster.name=gpu-a", "registration.adminKeySecret=admin")
AGENT_VALUES: dict[str, tuple[str, ...]] = {
    "job": _JOB,
    "token": (*_REACHES, "registration.enabled=false", "registration.clusterId=6f1d"),
    "key": (*_REACHES, "registration.enabled=false", "registration.clusterId=6f1d",
            "registration.identity=key", "registration.keySecretName=cluster-key"),
    "everything": (
        *_JOB, "controlPlane.caSecretName=ca", "cluster.accounts={one,two}", "agent.podAnnotations.a=b",
        "cluster.attributes.storage=fast", "gpus.discovery=static", "gpus.static=[]", "agent.replicas=2",
        "telemetry.endpoint=http://c:4317", "backend.featureGate.values={-HelmRBACEnforcement}",
        "helmFunctions.extraKubernetesTypes[0].group=example.com",
        "helmFunctions.extraKubernetesTypes[0].version=v1",
        "helmFunctions.extraKubernetesTypes[0].kind=Widget",
        "helmFunctions.extraKubernetesTypes[0].resource=widgets",
    ),
    "no-helm": (*_JOB, "helmFunctions.enabled=false", "networkPolicy.enabled=false",
                "namespaces.create=false"),
}  # fmt: skip
CASES = [("nvcf", name) for name in CONTROL_PLANE_VALUES] + [("nvcf-agent", name) for name in AGENT_VALUES]


def values_of(chart: str, case: str) -> tuple[str, ...]:
    """Return the values of a case, as `--set` takes them."""
    return (CONTROL_PLANE_VALUES if chart == "nvcf" else AGENT_VALUES)[case]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm without a cluster."""
    program = programs.find(programs.TOOLS)["helm"]
    command = [str(program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def flags(values: tuple[str, ...]) -> list[str]:
    """Return the options of helm for values."""
    return [part for value in values for part in ("--set", value)]


@functools.cache
def rendered(chart: str, case: str) -> tuple[Object, ...]:
    """Return the objects of a case."""
    return tuple(render(chart, values_of(chart, case)))


def render(chart: str, values: tuple[str, ...]) -> Iterator[Object]:
    """Yield the objects that a chart makes of values, hooks too."""
    done = helm("template", chart, f"charts/{chart}", "--namespace", NAMESPACES[chart], *flags(values))
    assert done.returncode == 0, done.stderr
    for document in yaml.safe_load_all(done.stdout):
        if document:
            yield document


def pod_of(found: Object) -> Object | None:
    """Return the pod's spec in an object, if it makes pods."""
    if found["kind"] == "Pod":
        return dict(found["spec"])
    template = found.get("spec", {}).get("template", {}) if isinstance(found.get("spec"), dict) else {}
    return dict(template["spec"]) if "spec" in template else None


def one(objects: tuple[Object, ...], kind: str, name: str) -> Object:
    """Return the only object of a kind and name."""
    [found] = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found
