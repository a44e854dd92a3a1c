"""Why an instance ends, in NVIDIA's words, and the text for people (protocol.md, section 6.6). Pure."""

from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.reports import Status

_CAUSES = {
    Category.UNSUPPORTED: Cause.TERMINAL_ERROR,
    Category.INVALID_CHART: Cause.TERMINAL_ERROR,
    Category.CRASH: Cause.CONTAINER_RESTART_LOOP,
    Category.OUT_OF_MEMORY: Cause.CONTAINER_RESTART_LOOP,
    Category.UNHEALTHY: Cause.DEGRADED_WORKER,
    Category.NOT_READY: Cause.DEGRADED_WORKER,
    Category.CAPACITY: Cause.NO_CAPACITY,
    Category.CREATE_CONTAINER: Cause.CREATE_CONTAINER_ERROR,
    Category.IMAGE_PULL: Cause.IMAGE_PULL,
    Category.CHART_PULL: Cause.IMAGE_PULL,
    Category.INIT_STUCK: Cause.INIT_CONTAINER_STUCK,
    Category.ADMISSION: Cause.ADMISSION_ERROR,
    Category.EVICTED: Cause.FAILED,
    Category.NODE_LOST: Cause.NOT_FOUND,
    Category.LOST: Cause.NOT_FOUND,
    Category.UNKNOWN: Cause.FAILED,
}
SEPARATOR = "---"
_LOG_LINES = 20
_LOG_BYTES = 1024


def cause_of(category: Category) -> Cause:
    """Return the cause that stands for a category of failure."""
    return _CAUSES[category]


def ending_status(cause: Cause | None) -> Status:
    """Return the status of a terminated instance."""
    if cause is Cause.BY_USER:
        return Status.TERMINATED_BY_USER
    return Status.TERMINATED_BY_SERVICE


def error_log(cause: Cause, reason: str) -> str:
    """Return `healthInfo.errorLog`: NVIDIA's first line, then the end of the instance's output."""
    first, *rest = reason.splitlines() or [""]
    text = f"pod terminated due to state {cause.value}: {first}"
    if not rest:
        return text
    if rest[0] == SEPARATOR:
        # A pod's reason has its containers in NVIDIA's form already.
        return "\n".join([text, *rest, ""])
    tail = "\n".join(rest[-_LOG_LINES:]).encode()[-_LOG_BYTES:].decode(errors="ignore")
    return f"{text}\n---\nCONTAINER inference EXITED\n{tail}\n---\n"
