"""Why instances end: NVIDIA's words for causes, and their categories (protocol.md, section 6.6)."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Value of `terminationCause` in a report."""

    NO_CAPACITY = "instance-terminated-no-capacity"
    CREATE_CONTAINER_ERROR = "create-container-error"
    IMAGE_PULL = "image-pull-issues"
    CONTAINER_RESTART_LOOP = "container-restart-loop"
    INIT_CONTAINER_RESTART_LOOP = "init-container-restart-loop"
    INIT_CONTAINER_STUCK = "init-container-stuck"
    DEGRADED_WORKER = "degraded-worker"
    ADMISSION_ERROR = "instance-terminated-admission-error"
    FAILED = "failed"
    NOT_FOUND = "instance-not-found"
    TERMINAL_ERROR = "instance-terminated-terminal-error"
    SHARED_STORAGE = "shared-storage-failure"
    MODEL_CACHE = "model-cache-failure"
    UTILS_POD_NOT_FOUND = "utils-pod-not-found"
    MAINTENANCE = "instance-terminated-service-maintenance"
    SYNC_ACTION = "instance-terminated-sync-action"
    PRECONDITION_FAILURE = "instance-terminated-precondition-failure"
    BY_USER = "instance-terminated-by-user"


CATEGORIES = {
    Cause.NO_CAPACITY: "capacity",
    Cause.CREATE_CONTAINER_ERROR: "create_container",
    Cause.IMAGE_PULL: "image_pull",
    Cause.CONTAINER_RESTART_LOOP: "crash",
    Cause.INIT_CONTAINER_RESTART_LOOP: "crash",
    Cause.INIT_CONTAINER_STUCK: "init_stuck",
    Cause.DEGRADED_WORKER: "not-ready",
    Cause.ADMISSION_ERROR: "admission",
    Cause.FAILED: "unknown",
    Cause.NOT_FOUND: "lost",
    Cause.TERMINAL_ERROR: "unsupported",
    Cause.MAINTENANCE: "maintenance",
}
"""Category of an instance's failure, by cause; a report's [ext] `details.category` says it more exactly."""

INVALID_CHART = "invalid_chart"
"""[ext] Category of an instance whose Helm chart is refused: only a change of the deployment can help."""

CHART_PULL = "chart_pull"
"""[ext] Category of an instance whose Helm chart its registry does not have or does not give."""

SECONDARY = frozenset((Cause.NOT_FOUND,))
"""Causes that NVIDIA's agent reports after the true one: they never replace an earlier cause."""

CONSEQUENCES = frozenset((Cause.SYNC_ACTION, Cause.PRECONDITION_FAILURE))
"""Causes that follow from what the control plane decided before: they never replace its reason."""
