"""Reading of a pod's status, as the API server has it. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Pod = Mapping[str, Any]

_KEPT_OF_SPEC = frozenset(("containers", "initContainers", "nodeName"))
_KEPT_OF_CONTAINERS = frozenset(("name", "image", "restartPolicy", "resources"))


def trim(pod: dict[str, Any]) -> None:
    """Take away what nobody reads of a pod that is kept."""
    spec: dict[str, Any] = pod["spec"]
    for each in [*spec.get("initContainers", ()), *spec["containers"]]:
        for name in each.keys() - _KEPT_OF_CONTAINERS:
            del each[name]
    for name in spec.keys() - _KEPT_OF_SPEC:
        del spec[name]


@dataclass(frozen=True)
class Termination:
    """How a run of a container ended. `message` has its last lines if it failed."""

    reason: str = ""
    exit_code: int = 0
    message: str = ""
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def is_failure(self) -> bool:
        """Whether it did not end by itself with 0."""
        return self.exit_code != 0 or self.reason not in ("", "Completed")

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel ended it at its memory limit."""
        return self.reason == "OOMKilled"


@dataclass(frozen=True)
class Container:
    """One container of a pod, and its state.

    `waiting` is the reason why it does not run, with `message`; `running_since` is None unless it runs.
    `runs_along`: it is no init container that ends, but runs as long as the pod.
    """

    name: str
    image: str
    is_init: bool
    runs_along: bool
    has_image: bool = False
    waiting: str = ""
    message: str = ""
    running_since: float | None = None
    terminated: Termination | None = None
    last: Termination | None = None
    restarts: int = 0
    ready: bool = False
    memory_limit: str = ""

    @property
    def failure(self) -> Termination | None:
        """How it failed last; None if it did not, or runs since."""
        found = self.terminated or (None if self.running_since is not None else self.last)
        return found if found is not None and (found.is_failure or self.runs_along) else None


def containers(pod: Pod) -> list[Container]:
    """Return all containers, in the order in which they start."""
    return list(_containers(pod))


def _containers(pod: Pod) -> Iterator[Container]:
    status = pod.get("status") or {}
    for listed, said, is_init in (
        ("initContainers", "initContainerStatuses", True),
        ("containers", "containerStatuses", False),
    ):
        known = {each["name"]: each for each in status.get(said) or ()}
        for each in pod["spec"].get(listed) or ():
            own = known.get(each["name"]) or {}
            state = own.get("state") or {}
            waiting, running = state.get("waiting") or {}, state.get("running")
            yield Container(
                name=each["name"],
                image=each.get("image", ""),
                is_init=is_init,
                runs_along=not is_init or each.get("restartPolicy") == "Always",
                has_image=bool(own.get("imageID")),
                waiting=waiting.get("reason", ""),
                message=waiting.get("message", ""),
                running_since=None if running is None else seconds(running.get("startedAt")),
                terminated=_termination(state.get("terminated")),
                last=_termination((own.get("lastState") or {}).get("terminated")),
                restarts=own.get("restartCount", 0),
                ready=own.get("ready", False),
                memory_limit=((each.get("resources") or {}).get("limits") or {}).get("memory", ""),
            )


def _termination(value: Mapping[str, Any] | None) -> Termination | None:
    if value is None:
        return None
    return Termination(
        value.get("reason", ""),
        value.get("exitCode", 0),
        value.get("message", ""),
        seconds(value.get("startedAt")),
        seconds(value.get("finishedAt")),
    )


@dataclass(frozen=True)
class Condition:
    """One condition: whether it holds, why, and since when (Unix time)."""

    holds: bool
    reason: str
    message: str
    since: float | None


def condition(pod: Pod, kind: str) -> Condition | None:
    """Return a condition of a pod; None if the pod does not say."""
    for each in (pod.get("status") or {}).get("conditions") or ():
        if each["type"] == kind:
            since = seconds(each.get("lastTransitionTime"))
            return Condition(each["status"] == "True", each.get("reason", ""), each.get("message", ""), since)
    return None


def is_ready(pod: Pod) -> bool:
    """Return whether a pod serves and is not being deleted."""
    ready = condition(pod, "Ready")
    return ready is not None and ready.holds and not is_going(pod)


def is_starting(pod: Pod) -> bool:
    """Return whether a container of a pod has never started, or its startup probe has not passed yet."""
    found = (pod.get("status") or {}).get("containerStatuses") or ()
    return not found or any(
        not each.get("started")
        and not each.get("restartCount")
        and "terminated" not in (each.get("state") or {})
        for each in found
    )


def is_going(pod: Pod) -> bool:
    """Return whether a pod is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def node_of(pod: Pod) -> str:
    """Return the name of a pod's node; empty before it has one."""
    name: str = pod["spec"].get("nodeName", "")
    return name


def addresses(pod: Pod) -> tuple[str, str]:
    """Return the addresses of node and pod; empty ones before they are known."""
    status = pod.get("status") or {}
    return status.get("hostIP", ""), status.get("podIP", "")


def restarts(pod: Pod) -> int:
    """Return how often containers of a pod were restarted."""
    return sum(each.restarts for each in containers(pod))


def seconds(text: str | None) -> float | None:
    """Return the Unix time of a time stamp; None for none."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
