"""Scale a function from zero: its first request, a burst, and back to zero without calls."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from examples.demo.acts import Function
from examples.demo.caller import Answer, Caller
from examples.demo.failure import DemoFailure
from examples.demo.screen import Screen
from rich.markup import escape

LOAD_SECONDS = 1.0
WORK_SECONDS = 0.2
MOST_INSTANCES = 4
BURST = 120
IDLE_SECONDS = 3.0
POLL = 0.1
REPORT_EVERY = 1.0
ZERO_DEADLINE = 45.0
RUNNING = "RUNNING"
WAITING = frozenset({"PENDING", "STARTING"})
LEAVING = "TERMINATING"
BODY = f'{{"seconds": {WORK_SECONDS}}}'.encode()
SIGNS = {RUNNING: "■", LEAVING: "x"}


@dataclass(frozen=True, slots=True)
class Copy:
    """One instance as the platform lists it; `created_at` is Unix time."""

    id: str
    state: str
    cluster: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Scaled:
    """Seconds of the first request with its cold start, of the burst, and until no instance was left."""

    first: float
    burst: float
    answered: int
    instances: int
    clusters: int
    to_zero: float


def parse_copies(records: Any) -> list[Copy]:
    """Return the live instances in GET /v2/nvcf/instances. Raises `DemoFailure` for another form."""
    try:
        copies = [
            Copy(
                id=record["instanceId"],
                state=record["state"],
                cluster=record["clusterName"],
                created_at=_unix(record["createdAt"]),
            )
            for record in records["instances"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DemoFailure(f"the list of instances cannot be understood ({error!r})") from error
    return [copy for copy in copies if copy.state in WAITING | {RUNNING, LEAVING}]


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def copies_of(caller: Caller, function: Function) -> list[Copy]:
    return parse_copies(await caller.get(f"/v2/nvcf/instances?functionVersionId={function.version_id}"))


def picture(copies: Sequence[Copy], clusters: Sequence[str]) -> str:
    """Return each cluster with a sign for each instance: `local-1 ■■..  local-2 ■□..`."""
    texts = []
    width = MOST_INSTANCES // len(clusters) if clusters else 0
    for cluster in clusters:
        here = sorted((copy for copy in copies if copy.cluster == cluster), key=lambda copy: copy.created_at)
        signs = "".join(SIGNS.get(copy.state, "□") for copy in here)
        texts.append(f"{cluster} {signs.ljust(width, '.')}")
    return "  ".join(texts)


async def show_scaling(screen: Screen, caller: Caller, function: Function, clusters: Sequence[str]) -> Scaled:
    """Scale from zero to four instances and back. Raises `DemoFailure` if a request fails."""
    if await copies_of(caller, function):
        raise DemoFailure(f"{function.name} has instances before anybody called it")
    screen.line(
        f"  It stands in for a model that takes {LOAD_SECONDS:g} s to load and {WORK_SECONDS:g} s to answer. "
        "No instance of it runs: it costs nothing."
    )
    first = await _first_request(screen, caller, function)
    screen.line()
    answers, burst = await _burst(screen, caller, function, clusters)
    used = check(answers)
    shares = Counter(copy.cluster for copy in await copies_of(caller, function) if copy.id in used)
    where = " and ".join(f"{count} on {cluster}" for cluster, count in sorted(shares.items()))
    screen.line(
        f"[green]✓[/green] {len(answers)} of {BURST} answered in {burst:.1f} s, "
        f"by {len(used)} instances: {escape(where)}. Nothing was lost or refused."
    )
    to_zero = await _back_to_zero(screen, caller, function)
    await _show_reasons(screen, caller, function)
    return Scaled(first, burst, len(answers), len(used), len(shares), to_zero)


async def _first_request(screen: Screen, caller: Caller, function: Function) -> float:
    """Send the first request. Returns the seconds until its response."""
    async with screen.step("the first request waits in the queue while an instance starts") as step:
        sent = time.time()
        answer = await caller.invoke(function.id, BODY, {})
        answer.json()
        copies = await copies_of(caller, function)
        step.result = "answered"
    if len(copies) != 1:
        raise DemoFailure(f"one instance was expected for one request, there are {len(copies)}")
    ordered = copies[0].created_at - sent
    screen.line(f"     {0:5.2f} s  sent: no instance, so the autoscaler is woken")
    screen.line(
        f"     {ordered:5.2f} s  an instance is ordered from {escape(copies[0].cluster)}; it starts and loads"
    )
    screen.line(f"     {answer.seconds:5.2f} s  answered: the whole cold start, and nobody had to ask twice")
    again = await caller.invoke(function.id, BODY, {})
    again.json()
    screen.line(f"  The second request takes {again.seconds:.2f} s: the instance is warm.")
    return answer.seconds


async def _burst(
    screen: Screen, caller: Caller, function: Function, clusters: Sequence[str]
) -> tuple[list[Answer], float]:
    """Return all responses, and the seconds until the last of them."""
    screen.line(
        f"  {BURST} requests at once; at most {MOST_INSTANCES} instances. "
        "■ runs  □ starts  . none         answered"
    )
    started = time.perf_counter()
    requests = [asyncio.create_task(caller.invoke(function.id, BODY, {})) for _ in range(BURST)]
    try:
        shown, reported = "", 0.0
        while True:
            seconds = time.perf_counter() - started
            done = sum(request.done() for request in requests)
            now = picture(await copies_of(caller, function), clusters)
            if now != shown or seconds - reported >= REPORT_EVERY or done == BURST:
                screen.line(f"     +{seconds:5.1f} s  {escape(now):48} {done:3} of {BURST}")
                shown, reported = now, seconds
            if done == BURST:
                break
            await asyncio.wait(requests, timeout=POLL)
        return [request.result() for request in requests], time.perf_counter() - started
    finally:
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)


def check(answers: Sequence[Answer]) -> set[str]:
    """Return the instances that responded. Raises `DemoFailure` for an error, or for too few instances."""
    try:
        used = {str(answer.json()["instance"]) for answer in answers}
    except (KeyError, TypeError) as error:
        raise DemoFailure(f"an answer of the burst cannot be understood ({error!r})") from error
    if len(used) != MOST_INSTANCES:
        raise DemoFailure(f"the burst was answered by {len(used)} instances, not by {MOST_INSTANCES}")
    return used


async def _back_to_zero(screen: Screen, caller: Caller, function: Function) -> float:
    started = time.perf_counter()
    async with screen.step(f"nobody calls any more; after {IDLE_SECONDS:g} s its instances leave") as step:
        while copies := await copies_of(caller, function):
            step.note = f"{len(copies)} left"
            if time.perf_counter() - started > ZERO_DEADLINE:
                raise DemoFailure(f"{len(copies)} instances are left {ZERO_DEADLINE:.0f} s after the burst")
            await asyncio.sleep(POLL)
        step.result = "back to zero, its GPUs are free"
    return time.perf_counter() - started


async def _show_reasons(screen: Screen, caller: Caller, function: Function) -> None:
    """Show the autoscaler's reasons, the same as `nvcf scaling`."""
    path = f"/v2/nvcf/events?functionVersionId={function.version_id}&kind=scaling&limit=20"
    found = await caller.get(path)
    screen.line(f"  Why, in the autoscaler's own words (nvcf scaling {escape(function.name)}):")
    for text in reasons(found):
        screen.plain(f"     {text}")


def reasons(found: Any) -> list[str]:
    """Return the texts of GET /v2/nvcf/events, oldest first. Raises `DemoFailure` for another form."""
    try:
        return [str(event["text"]) for event in reversed(found["events"])]
    except (KeyError, TypeError) as error:
        raise DemoFailure(f"the list of events cannot be understood ({error!r})") from error
