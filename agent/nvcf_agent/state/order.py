"""What a creation message says, where the agent needs it in another form. Pure."""

import functools
import re

from nvcf_proto import environment as names
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.messages import CreationMessage, decode_environment

_DURATION = re.compile(
    r"P(?:(\d{1,6})D)?(?:T(?:(\d{1,7})H)?(?:(\d{1,9})M)?(?:(\d{1,9}(?:\.\d{1,9})?)S)?)?", re.ASCII
)
TASK_NAME = "TASK_NAME"
_UNITS = (86_400.0, 3600.0, 60.0, 1.0)


@functools.lru_cache(maxsize=64)
def _decoded(text: str) -> dict[str, str]:
    return decode_environment(text)


def environment(order: CreationMessage) -> dict[str, str]:
    """Return the variables of a message's environment. Raises InvalidRecord."""
    return dict(_decoded(order.launch_specification.environment))


def function_name(order: CreationMessage) -> str:
    """Return the function's or task's name, for logs and folders; its id if the message has no name."""
    try:
        variables = _decoded(order.launch_specification.environment)
        name = variables.get(names.FUNCTION_NAME) or variables.get(TASK_NAME)
    except InvalidRecord:
        name = None
    return name or version_id(order)


def function_id(order: CreationMessage) -> str:
    """Return the id of the function or task."""
    if order.function_details is not None:
        return order.function_details.function_id
    return order.task_details.task_id if order.task_details is not None else ""


def version_id(order: CreationMessage) -> str:
    """Return the id of the function version or task."""
    if order.function_details is not None:
        return order.function_details.function_version_id
    return function_id(order)


def gpu(order: CreationMessage) -> str:
    """Return the name of the GPU."""
    return order.launch_specification.gpu_name or order.gpu_type or ""


def instance_type(order: CreationMessage) -> str:
    """Return the name of the instance type. Only old control planes leave out `instanceTypeName`."""
    return order.instance_type_name or order.instance_type or order.instance_type_value


def grace(order: CreationMessage, default: float) -> float:
    """Return the seconds between SIGTERM and SIGKILL: a task's own, or the agent's."""
    return duration(order.launch_specification.termination_grace_period_duration, default)


def duration(text: str | None, default: float) -> float:
    """Return the seconds of an ISO 8601 duration such as `PT1H30M`; `default` for anything else."""
    match = _DURATION.fullmatch(text or "")
    if match is None or not any(match.groups()):
        return default
    return sum(float(value) * unit for value, unit in zip(match.groups(), _UNITS, strict=True) if value)
