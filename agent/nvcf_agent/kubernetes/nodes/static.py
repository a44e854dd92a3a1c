"""GPUs as an administrator has written them down, in place of those of the nodes' labels. Pure."""

from typing import Any

import msgspec

from nvcf_agent.errors import AgentError
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.reports import Gpu

KEY = "gpus"
"""Key of ConfigMap `nvca-config`."""


def parse_static(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs of a JSON list as registrations have it: name, capacity and instanceTypes.

    Without a capacity, GPUs have that of the instances that their types allow at most. Raises `AgentError`.
    """
    try:
        members: list[dict[str, Any]] = msgspec.json.decode(text, type=list[dict[str, Any]])
        gpus = tuple(Gpu.from_dict(each) for each in members)
    except (msgspec.MsgspecError, InvalidRecord) as error:
        raise AgentError(f"the list of GPUs (key {KEY}) cannot be read: {error}") from error
    for gpu in gpus:
        if not gpu.instance_types:
            raise AgentError(f"the list of GPUs (key {KEY}): {gpu.name} has no instanceTypes")
    return tuple(each if each.capacity else each.replace(capacity=_capacity(each)) for each in gpus)


def _capacity(gpu: Gpu) -> int:
    return max(each.gpu_count * (each.max_instances or 1) for each in gpu.instance_types)
