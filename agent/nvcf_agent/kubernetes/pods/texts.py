"""What a failure says to people: what was seen, what to do, and the end of the containers' output. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from nvcf_agent.kubernetes.pods import status
from nvcf_agent.kubernetes.pods.observe import Failure, how_ended
from nvcf_agent.kubernetes.pods.status import Container, Pod, Termination
from nvcf_agent.kubernetes.pods.task_end import is_task
from nvcf_agent.state.causes import SEPARATOR
from nvcf_agent.state.managed_instance import Category

LOG_LINES = 20
LOG_BYTES = 1024
_LONGEST_TEXT = 800

_ADVICE = {
    Category.CAPACITY: "add nodes of this instance type, end other instances, or deploy with another type",
    Category.IMAGE_PULL: "check the image's name and tag, and the account's credential for its registry",
    Category.CREATE_CONTAINER: "check the image's entrypoint, the arguments and what the message names",
    Category.CRASH: "its last lines are below; run the image by hand to see more",
    Category.OUT_OF_MEMORY: "choose an instance type with more memory, or use less: smaller batches, less"
    " concurrency",
    Category.INIT_STUCK: "check the addresses of models and resources, and the speed of their server",
    Category.NOT_READY: "check the function's health endpoint, port and protocol, and its output below",
    Category.ADMISSION: "the node's GPUs or device plugin may be at fault; look at the node",
    Category.EVICTED: "another instance is ordered; look at the node's memory and disk if it happens again",
    Category.NODE_LOST: "another instance is ordered; look at the node",
}

_TASK_ADVICE = {
    Category.CAPACITY: "add nodes of this instance type, end other instances, or submit it for another type",
    Category.OUT_OF_MEMORY: "choose an instance type with more memory, or use less",
    Category.NOT_READY: "look at the output of its containers",
    Category.EVICTED: "submit it again; look at the node's memory and disk if that happens often",
    Category.NODE_LOST: "submit it again; look at the node",
}


def described(
    failure: Failure,
    pod: Pod,
    events: Iterable[Mapping[str, Any]] = (),
    logs: Mapping[str, str] | None = None,
) -> str:
    """Return the reason of an instance's end: one line, then NVIDIA's form of containers and their output.

    `events` are the pod's, `logs` the last lines of containers whose status has none.
    """
    advice = (_ADVICE | _TASK_ADVICE if is_task(pod) else _ADVICE).get(failure.category)
    first = " ".join(failure.text.split())[:_LONGEST_TEXT]
    warning = last_warning(events)
    if warning and warning not in first and failure.category in (Category.NOT_READY, Category.INIT_STUCK):
        first = f"{first} ({warning})"
    lines = [f"{first}; {advice}" if advice else first]
    for each in status.containers(pod):
        run = _last_run(each, blamed=each.name == failure.container)
        log = (logs or {}).get(each.name, "")
        lines += [SEPARATOR, _headline(each, run), *_tail(run, log)]
    return "\n".join([*lines, SEPARATOR])


def why_restarted(pods: Iterable[Pod]) -> str:
    """Return why a container was started again last, with the end of its output; empty if none was."""
    again = [
        each for pod in pods for each in status.containers(pod) if each.restarts and each.last is not None
    ]
    if not again:
        return ""
    newest = max(again, key=lambda each: each.running_since or math.inf)
    run = newest.last
    first = f"container {newest.name} {how_ended(replace(newest, terminated=None))} and was started again"
    if run is not None and run.out_of_memory:
        first += f"; {_ADVICE[Category.OUT_OF_MEMORY]}"
    return "\n".join([first[:_LONGEST_TEXT], SEPARATOR, _headline(newest, run), *_tail(run, ""), SEPARATOR])


def last_warning(events: Iterable[Mapping[str, Any]]) -> str:
    """Return the text of a pod's newest warning; empty if there is none."""
    warnings = [each for each in events if each.get("type") == "Warning"]
    if not warnings:
        return ""
    newest = max(warnings, key=_event_time)
    return " ".join(f"{newest.get('reason', '')}: {newest.get('message', '')}".split())[:_LONGEST_TEXT]


def _event_time(event: Mapping[str, Any]) -> float:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((found for each in times if (found := status.seconds(each)) is not None), 0.0)


def _last_run(container: Container, *, blamed: bool) -> Termination | None:
    """Return the run to show: a container that is to blame may have just been started again."""
    if container.terminated is not None:
        return container.terminated
    failed_before = container.restarts > 0 and not container.ready
    return container.last if container.waiting or (blamed and failed_before) else None


def _headline(container: Container, run: Termination | None) -> str:
    kind = "INIT CONTAINER" if container.is_init else "CONTAINER"
    if run is not None:
        return f"{kind} {container.name} EXITED, CODE={run.exit_code}"
    state = "RUNNING" if container.running_since is not None else "WAITING"
    return f"{kind} {container.name} {state}"


def _tail(run: Termination | None, log: str) -> list[str]:
    text = run.message if run is not None and run.message else log
    kept = "\n".join(text.splitlines()[-LOG_LINES:]).encode()[-LOG_BYTES:].decode(errors="ignore")
    # A line of dashes alone would end the block.
    return [line for line in kept.splitlines() if line.strip() != SEPARATOR]
