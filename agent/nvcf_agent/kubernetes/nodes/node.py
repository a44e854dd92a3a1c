"""A node's GPUs, from its labels (those of the GPU operator) and its allocatable resources. Pure."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nvcf_agent.kubernetes.nodes.quantity import quantity
from nvcf_agent.state.gpu_names import gpu_name

_log = logging.getLogger(__name__)

INSTANCE_TYPE = "nvca.nvcf.nvidia.io/instance-type"
SCHEDULE = "nvca.nvcf.nvidia.io/schedule"
_PRODUCT = "nvca.nvcf.nvidia.io/gpu.product"
_GPU = "nvidia.com/gpu."
_SHARED = "-SHARED"
_MEBI = 2**20
PLAIN_RESOURCE, SHARED_RESOURCE = "nvidia.com/gpu", "nvidia.com/gpu.shared"
# A virtual machine with GPUs of its own; the flag PassthroughGPUEnabled says whether the cluster has such.
PASSTHROUGH_RESOURCE, _PASSTHROUGH = "nvidia.com/pgpu", "vm-passthrough"


@dataclass(frozen=True)
class GpuNode:
    """A node with GPUs of one name. `kind` is the value of its instance types, `NCP.GPU.H100`.

    `gpus` of them can be requested as `resource`. `memory` and `storage` are in bytes, `gpu_memory` is that
    of one GPU. Without `is_usable` nothing new is placed there. Without `is_labelled` its label for `kind` is
    missing.
    """

    name: str
    gpu: str
    kind: str
    gpus: int
    resource: str = PLAIN_RESOURCE
    milli_cpus: int = 0
    memory: int = 0
    storage: int = 0
    gpu_memory: int = 0
    description: str = ""
    architecture: str | None = None
    os: str | None = None
    driver: str | None = None
    is_usable: bool = True
    is_labelled: bool = True
    schedule: str | None = None
    """The label by which some nodes of a cluster are reserved for it."""


def read_node(node: Mapping[str, Any], provider: str, *, passthrough: bool = False) -> GpuNode | None:
    """Return what a node offers; None for a node without GPUs that can be used here."""
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    if labels.get(f"{_GPU}present") != "true":
        return None
    name: str = node["metadata"]["name"]
    override = labels.get(_PRODUCT)
    product = override or labels.get(f"{_GPU}product") or ""
    status = node.get("status") or {}
    allocatable: Mapping[str, str] = status.get("allocatable") or {}
    resource = _resource(labels, product, allocatable, passthrough=passthrough)
    gpus = int(quantity(allocatable.get(resource, "0")))
    if not product or gpus <= 0:
        _log.debug("node %s has no GPUs for functions (product %r, %s: %d)", name, product, resource, gpus)
        return None
    gpu = override or gpu_name(product)
    return GpuNode(
        name=name,
        gpu=gpu,
        kind=labels.get(INSTANCE_TYPE) or f"{provider}.GPU.{gpu}",
        gpus=gpus,
        resource=resource,
        milli_cpus=int(quantity(allocatable.get("cpu", "0")) * 1000),
        memory=int(quantity(allocatable.get("memory", "0"))),
        storage=int(quantity(allocatable.get("ephemeral-storage", "0"))),
        gpu_memory=int(quantity(labels.get(f"{_GPU}memory", "0"))) * _MEBI,
        description=_description(labels, product),
        architecture=labels.get("kubernetes.io/arch"),
        os=labels.get("kubernetes.io/os"),
        driver=_driver(labels),
        is_usable=_is_ready(node),
        is_labelled=bool(labels.get(INSTANCE_TYPE)),
        schedule=labels.get(SCHEDULE),
    )


def usable(nodes: Iterable[GpuNode]) -> tuple[GpuNode, ...]:
    """Return the nodes by name. Where some have the label for it, only those with `true` are used."""
    listed = sorted(nodes, key=lambda each: each.name)
    if all(each.schedule is None for each in listed):
        return tuple(listed)
    return tuple(each if each.schedule == "true" else replace(each, is_usable=False) for each in listed)


def _resource(
    labels: Mapping[str, str], product: str, allocatable: Mapping[str, str], *, passthrough: bool
) -> str:
    if passthrough and labels.get(f"{_GPU}workload.config") == _PASSTHROUGH:
        return PASSTHROUGH_RESOURCE
    # The device plugin renames the shares of a GPU only if it is told to.
    if product.upper().endswith(_SHARED) and SHARED_RESOURCE in allocatable:
        return SHARED_RESOURCE
    return PLAIN_RESOURCE


def _description(labels: Mapping[str, str], product: str) -> str:
    family = labels.get(f"{_GPU}family")
    machine = labels.get(f"{_GPU}machine")
    text = f"{product} ({family} family)" if family else product
    return f"{text} on a {machine} machine" if machine else text


def _driver(labels: Mapping[str, str]) -> str | None:
    full = labels.get("nvidia.com/cuda.driver-version.full")
    parts = [labels.get(f"nvidia.com/cuda.driver.{each}") for each in ("major", "minor", "rev")]
    return full or ".".join(each for each in parts if each) or None


def _is_ready(node: Mapping[str, Any]) -> bool:
    if (node.get("spec") or {}).get("unschedulable") or node["metadata"].get("deletionTimestamp"):
        return False
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
