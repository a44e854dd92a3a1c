"""Rules for the pods of a chart: what is refused, and what is cleared. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nvcf_proto.charts.objects import Object, containers, items, member
from nvcf_proto.charts.policy import Policy

_HOST = {
    "hostNetwork": "gives pods the node's network",
    "hostPID": "shows pods the node's processes",
    "hostIPC": "gives pods the node's shared memory",
}
_VOLUMES = frozenset(("configMap", "secret", "projected", "persistentVolumeClaim", "emptyDir", "downwardAPI"))
_SOURCES = frozenset(("configMap", "secret", "downwardAPI"))
_CAPABILITIES = frozenset(("NET_BIND_SERVICE",))
_CLEARED = (
    "serviceAccountName", "serviceAccount", "priorityClassName", "priority", "nodeSelector", "nodeName",
    "schedulerName", "runtimeClassName",
)  # fmt: skip
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop")
_UNSAFE_PROFILES = ("Unconfined", "Localhost")


def clear(spec: Object) -> None:
    """Remove from a pod's `spec` what decides about nodes, priority and accounts, and switch off the rest."""
    for name in _CLEARED:
        spec.pop(name, None)
    affinity = spec.get("affinity")
    if isinstance(affinity, dict):
        affinity.pop("nodeAffinity", None)
    if not affinity:
        spec.pop("affinity", None)
    spec["automountServiceAccountToken"] = False
    for _, container in containers(spec):
        context = container.get("securityContext")
        container["securityContext"] = kept = context if isinstance(context, dict) else {}
        kept["allowPrivilegeEscalation"] = False


def problems(spec: Object, policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield what a policy refuses in a pod's `spec`: the field, and why with the way out."""
    if policy.objects:
        yield from _of_pod(spec)
        yield from _of_volumes(spec)
    if not any(path.startswith("containers[") for path, _ in containers(spec)):
        yield "containers", "is empty: a pod needs a container"
    for path, container in containers(spec):
        if policy.objects:
            for field, reason in (*_of_container(container), *_of_probes(container)):
                yield f"{path}.{field}", reason
        if not container.get("image"):
            yield f"{path}.image", "is missing: name the container's image"


def _of_pod(spec: Object) -> Iterator[tuple[str, str]]:
    for name, means in _HOST.items():
        if spec.get(name):
            yield name, f"{means}: remove it"
    if spec.get("automountServiceAccountToken"):
        yield (
            "automountServiceAccountToken",
            "asks for a token of the API server, which functions do not get: remove it",
        )
    if spec.get("ephemeralContainers"):
        yield "ephemeralContainers", "is for debugging running pods: remove it"
    if spec.get("resourceClaims"):
        yield "resourceClaims", "asks for devices beside the deployment's GPUs: remove it"
    context = member(spec, "securityContext")
    if member(context, "sysctls"):
        yield "securityContext.sysctls", "changes the kernel's settings: remove it"
    yield from _of_profiles(context, "securityContext.")
    if member(context, "windowsOptions", "hostProcess"):
        yield "securityContext.windowsOptions.hostProcess", "runs on the node itself: remove it"


def _of_profiles(context: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for name in ("seccompProfile", "appArmorProfile"):
        if (kind := member(context, name, "type")) in _UNSAFE_PROFILES:
            yield f"{prefix}{name}.type", f"is {kind}: remove it, or use RuntimeDefault"


def _of_volumes(spec: Object) -> Iterator[tuple[str, str]]:
    for index, volume in enumerate(items(spec, "volumes")):
        path = f"volumes[{index}]"
        for name in sorted(volume.keys() - _VOLUMES - {"name"}):
            yield (
                f"{path}.{name}",
                "is not allowed: use configMap, secret, projected, persistentVolumeClaim or emptyDir",
            )
        for number, source in enumerate(items(volume, "projected", "sources")):
            for name in sorted(source.keys() - _SOURCES):
                yield f"{path}.projected.sources[{number}].{name}", "is not allowed: use configMap or secret"


def _of_container(container: Object) -> Iterator[tuple[str, str]]:
    for index, port in enumerate(items(container, "ports")):
        for name in ("hostPort", "hostIP"):
            if port.get(name):
                yield f"ports[{index}].{name}", "takes a port of the node: remove it, the Service is enough"
    context = member(container, "securityContext")
    if member(context, "privileged"):
        yield "securityContext.privileged", "gives the container the whole node: remove it"
    if member(context, "allowPrivilegeEscalation"):
        yield "securityContext.allowPrivilegeEscalation", "is true: remove it"
    added = member(context, "capabilities", "add")
    for each in added if isinstance(added, list) else ():
        if each not in _CAPABILITIES:
            yield (
                "securityContext.capabilities.add",
                f"has {str(each)[:64]}: only {', '.join(_CAPABILITIES)} can be added",
            )
    if member(context, "procMount") not in (None, "Default"):
        yield "securityContext.procMount", "shows the node's /proc: remove it"
    if member(context, "windowsOptions", "hostProcess"):
        yield "securityContext.windowsOptions.hostProcess", "runs on the node itself: remove it"
    yield from _of_profiles(context, "securityContext.")
    if container.get("volumeDevices"):
        yield "volumeDevices", "opens a raw device: use volumeMounts"


def _of_probes(container: Object) -> Iterator[tuple[str, str]]:
    for probe in _PROBES:
        for name in ("httpGet", "tcpSocket"):
            if member(container, *probe.split("."), name, "host"):
                yield f"{probe}.{name}.host", "is asked by the node itself, past network policies: remove it"
