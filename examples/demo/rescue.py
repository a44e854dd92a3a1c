"""A worker is killed during a request, and its caller still gets the response."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.demo.acts import Function
from examples.demo.caller import Answer, Caller
from examples.demo.failure import DemoFailure
from examples.demo.reading import Reading, median, passes_for
from examples.demo.screen import Screen
from examples.ocr.images import Sample

from nvcf_cli.instance_ids import short_id

# Long enough to find out who works on the request and to kill it well before the end.
BUSY_SECONDS = 4.0
WORK_BEFORE_KILL = 1.0
MAX_PASSES = 1000
FIND_DEADLINE = 20.0
ANSWER_DEADLINE = 80.0
RETURN_DEADLINE = 30.0
POLL = 0.05
RUNNING = "RUNNING"


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance in the platform's list."""

    id: str
    state: str
    pid: int | None
    restarts: int
    log_path: Path | None

    @property
    def short_id(self) -> str:
        return short_id(self.id)


@dataclass(frozen=True, slots=True)
class Rescue:
    """Times in seconds since the request was sent."""

    killed_at: float
    answered_at: float
    killed_pid: int
    answering_pid: int
    answering_instance: str
    delivery: int

    @property
    def after_kill(self) -> float:
        return self.answered_at - self.killed_at


def parse_instances(records: Any) -> list[Instance]:
    """Parse GET /v2/nvcf/instances. Raises `DemoFailure` for another form."""
    try:
        return [
            Instance(
                id=record["instanceId"],
                state=record["state"],
                pid=record.get("pid"),
                restarts=record.get("restarts", 0),
                log_path=Path(record["logPath"]) if record.get("logPath") else None,
            )
            for record in records["instances"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DemoFailure(f"the list of instances cannot be understood ({error!r})") from error


async def instances_of(caller: Caller, function: Function) -> list[Instance]:
    return parse_instances(await caller.get(f"/v2/nvcf/instances?functionVersionId={function.version_id}"))


class LogMarks:
    """The size of each instance's log at the start, to find the instance that logged a text since then."""

    def __init__(self, instances: Sequence[Instance]) -> None:
        self._marks = [(instance, instance.log_path, _size(instance.log_path)) for instance in instances]

    def who_wrote(self, text: bytes) -> Instance | None:
        for instance, path, mark in self._marks:
            if path is not None and text in _read_from(path, mark):
                return instance
        return None


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else 0


def _read_from(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(offset)
            return log.read()
    except FileNotFoundError:
        return b""


async def kill_and_wait(
    screen: Screen, caller: Caller, function: Function, sample: Sample, readings: Sequence[Reading]
) -> Rescue:
    """Send one long request, kill its worker with SIGKILL, and wait for the caller's response.

    Raises `DemoFailure` when the answer is late, wrong, or came from the killed process.
    """
    before = await instances_of(caller, function)
    earlier = next(reading for reading in readings if reading.name == sample.scene.name)
    passes = passes_for(BUSY_SECONDS, median([reading.model_ms for reading in readings]), MAX_PASSES)
    marks = LogMarks(before)
    headers = {"content-type": sample.content_type, "x-ocr-passes": str(passes)}
    screen.line(
        f"  One long request: read “{sample.scene.name}” {passes} times, about {BUSY_SECONDS:.0f} s of work."
    )
    started = time.perf_counter()
    request = asyncio.create_task(caller.invoke(function.id, sample.data, headers))
    try:
        async with screen.step("finding the worker that has taken it") as step:
            victim, pid = await _find_worker(marks, request, passes)
            await asyncio.sleep(WORK_BEFORE_KILL)
            step.result = f"instance {victim.short_id}, process {pid}, says so in its log and is at work"
        _kill(pid, request)
        killed_at = time.perf_counter() - started
        screen.line(f"[red]✗[/red] SIGKILL to process {pid}, {killed_at:.1f} s after the request was sent")
        async with screen.step("the same caller is still waiting") as step:
            answer = await _answer(request)
            rescue = judge(answer, earlier, passes, pid, killed_at)
            step.result = f"and gets its answer ({answer.status}, the right text)"
    finally:
        request.cancel()
        await asyncio.wait({request})
    who = (
        "the other instance" if rescue.answering_instance != victim.id else "the same instance, started again"
    )
    screen.line(
        f"  Answered {rescue.after_kill:.1f} s after the kill by {who}, "
        f"{short_id(rescue.answering_instance)}, process {rescue.answering_pid}."
    )
    screen.line(f"  That was delivery {rescue.delivery} of request {answer.request_id}.")
    async with screen.step(f"instance {victim.short_id} is started again") as step:
        step.result = f"process {await _wait_for_return(caller, function, victim)}"
    return rescue


async def _find_worker(marks: LogMarks, request: asyncio.Task[Answer], passes: int) -> tuple[Instance, int]:
    deadline = time.monotonic() + FIND_DEADLINE
    while time.monotonic() < deadline:
        instance = marks.who_wrote(started_line(passes))
        if instance is not None and instance.pid:
            return instance, instance.pid
        if request.done():
            raise DemoFailure(f"the long request was over before its worker was found: {_outcome(request)}")
        await asyncio.sleep(POLL)
    raise DemoFailure(f"no worker took the long request within {FIND_DEADLINE:.0f} s")


def started_line(passes: int) -> bytes:
    """Return the line that examples/ocr logs at the start of a request."""
    return f"in {passes} passes".encode()


def _outcome(request: asyncio.Task[Answer]) -> str:
    error = request.exception()
    return str(error) if error else f"status {request.result().status}"


def _kill(pid: int, request: asyncio.Task[Answer]) -> None:
    if request.done():
        raise DemoFailure(f"the long request was over before its worker could be killed: {_outcome(request)}")
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        raise DemoFailure(f"process {pid} had ended by itself before it could be killed") from None


async def _answer(request: asyncio.Task[Answer]) -> Answer:
    try:
        return await asyncio.wait_for(request, ANSWER_DEADLINE)
    except TimeoutError:
        raise DemoFailure(f"no answer within {ANSWER_DEADLINE:.0f} s after the kill") from None


def judge(answer: Answer, earlier: Reading, passes: int, killed_pid: int, killed_at: float) -> Rescue:
    """Check that the response equals that of an undisturbed request and is not from the killed process."""
    body = answer.json()
    try:
        text, done, delivery = body["text"], body["passes"], int(body["delivery"])
        instance, pid = body["worker"]["instance"], body["worker"]["pid"]
    except (KeyError, TypeError, ValueError) as error:
        raise DemoFailure(f"the OCR function's answer cannot be understood ({error!r})") from error
    if pid == killed_pid:
        raise DemoFailure(f"the answer came from process {pid}, which was killed too late")
    if (text, done) != (earlier.recognised, passes):
        raise DemoFailure(f"the answer after the kill is another one: {text!r} in {done} passes")
    return Rescue(killed_at, answer.seconds, killed_pid, pid, instance, delivery)


async def _wait_for_return(caller: Caller, function: Function, victim: Instance) -> int:
    deadline = time.monotonic() + RETURN_DEADLINE
    state = "unknown"
    while time.monotonic() < deadline:
        for instance in await instances_of(caller, function):
            if instance.id == victim.id:
                state = instance.state
                if state == RUNNING and instance.pid and instance.pid != victim.pid:
                    return instance.pid
        await asyncio.sleep(POLL)
    raise DemoFailure(
        f"instance {victim.short_id} is still {state} {RETURN_DEADLINE:.0f} s after it was answered for"
    )
