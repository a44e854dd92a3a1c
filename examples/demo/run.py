"""Run the whole demo and stop everything at its end."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from examples.demo import preflight
from examples.demo.acts import Function, Streamed, read_pictures, show_stream
from examples.demo.caller import Caller
from examples.demo.failure import DemoFailure
from examples.demo.local import Platform
from examples.demo.reading import Score
from examples.demo.rescue import Rescue, kill_and_wait
from examples.demo.scaling import IDLE_SECONDS, MOST_INSTANCES, Scaled, show_scaling
from examples.demo.screen import Screen
from examples.ocr.images import make_samples

EXAMPLES = Path(__file__).resolve().parents[1]
OCR_INSTANCES = 2
CLUSTERS = ("local-1", "local-2")
GPUS = 4
# A picture that is read without a fault, so that the answer after the kill has only one right form.
LONG_PICTURE = "plain"
LOG_LINE = 240

DONE, FAILED, INTERRUPTED = 0, 1, 130


@dataclass(frozen=True, slots=True)
class Results:
    score: Score
    streamed: Streamed
    rescue: Rescue
    scaled: Scaled


async def run(screen: Screen, *, keep: bool) -> int:
    """Return the exit code: 0 done, 1 failed, 130 interrupted. No process is left in any case."""
    _end_on_sigterm()
    started = time.monotonic()
    try:
        folder = Path(tempfile.mkdtemp(prefix="nvcf-demo-"))
        platform = Platform(folder)
    except (OSError, DemoFailure) as error:
        screen.plain(f"The demo cannot start: {error}")
        return FAILED
    results: Results | None = None
    stopped: str | None = None
    code = FAILED
    try:
        results = await _show(screen, platform)
        code = DONE
    except (DemoFailure, OSError) as failure:
        await _explain(screen, platform, failure)
    except asyncio.CancelledError:
        # ctrl-c or SIGTERM: the one thing still to do is to stop what was started.
        code = INTERRUPTED
        _uncancel()
        screen.line("[yellow]Interrupted.[/yellow]")
    finally:
        stopped = await _stop(screen, platform)
    code = code if stopped is not None else code or FAILED
    if results is not None and stopped is not None:
        _summarise(screen, results, stopped, time.monotonic() - started)
    _put_away(screen, folder, keep=keep or code == FAILED)
    return code


def _end_on_sigterm() -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


async def _show(screen: Screen, platform: Platform) -> Results:
    screen.heading("1  The platform")
    samples = make_samples()
    async with screen.step("looking for what is needed") as step:
        await asyncio.to_thread(preflight.check)
        step.result = "all there"
    await _start(screen, platform)
    async with Caller(platform.url, platform.key) as caller:
        ocr = await _deploy(screen, platform, caller, "ocr", "--instances", str(OCR_INSTANCES))
        stream = await _deploy(screen, platform, caller, "stream", "--instances", "1")
        screen.heading(f"2  {len(samples)} pictures, read by a model on the CPU ({OCR_INSTANCES} instances)")
        readings, score = await read_pictures(screen, caller, ocr, samples)
        screen.heading("3  An event stream, live")
        streamed = await show_stream(screen, caller, stream)
        screen.heading("4  A worker is killed in the middle of a request")
        sample = next(sample for sample in samples if sample.scene.name == LONG_PICTURE)
        rescue = await kill_and_wait(screen, caller, ocr, sample, readings)
        screen.heading(f"5  From no instance to {MOST_INSTANCES} on {len(CLUSTERS)} clusters, and back")
        bounds = ("--min", "0", "--max", str(MOST_INSTANCES), "--gpu", "SIM")
        idle = ("--scale-to-zero-delay", f"{IDLE_SECONDS:g}")
        slow = await _deploy(screen, platform, caller, "slow_start", *bounds, *idle)
        scaled = await show_scaling(screen, caller, slow, CLUSTERS)
    return Results(score, streamed, rescue, scaled)


async def _start(screen: Screen, platform: Platform) -> None:
    flags = ("--clusters", str(len(CLUSTERS)), "--gpus", str(GPUS))
    async with screen.step(" ".join(("nvcf up", *flags))) as step:
        await platform.start(step, *flags)
        step.result = f"broker, autoscaler, {len(CLUSTERS)} clusters of {GPUS} simulated GPUs; {platform.url}"


async def _deploy(screen: Screen, platform: Platform, caller: Caller, name: str, *flags: str) -> Function:
    file = EXAMPLES / name / "function.py"
    async with screen.step(" ".join(("nvcf deploy", f"{name}/function.py", *flags))) as step:
        await platform.deploy(step, file, name, *flags)
        function = await find_function(caller, name)
        step.result = f"function {function.id[:8]}"
    return function


async def find_function(caller: Caller, name: str) -> Function:
    listed = await caller.get("/v2/nvcf/functions")
    try:
        found = [entry for entry in listed["functions"] if entry["name"] == name]
        return Function(name, found[0]["id"], found[0]["versionId"])
    except (KeyError, TypeError, IndexError) as error:
        raise DemoFailure(f"the function {name} is not in the gateway's list ({error!r})") from error


async def _explain(screen: Screen, platform: Platform, failure: Exception) -> None:
    screen.line()
    screen.plain(f"The demo failed: {failure}{await platform.explain_end()}")
    for name, lines in platform.log_tails():
        screen.line(f"[dim]-- end of {name}[/dim]")
        for line in lines:
            screen.plain(f"   {line[:LOG_LINE]}")


async def _stop(screen: Screen, platform: Platform) -> str | None:
    """Stop everything. Returns a sentence about it, or None if a process had to be killed."""
    if not platform.was_started:
        return "nothing was started"
    screen.heading("6  The end")
    try:
        async with screen.step("nvcf down") as step:
            step.result = await platform.stop(step)
            return step.result
    except DemoFailure as failure:
        screen.plain(f"The platform did not stop cleanly: {failure}")
        return None


def _summarise(screen: Screen, results: Results, stopped: str, seconds: float) -> None:
    rescue, scaled = results.rescue, results.scaled
    screen.heading("Summary")
    screen.line(f"  Read       {results.score}.")
    screen.line(
        f"  Streamed   {results.streamed.tokens} words one by one in {results.streamed.seconds:.1f} s."
    )
    screen.line(
        f"  Survived   SIGKILL of a worker {rescue.killed_at:.1f} s into a request; "
        f"another process answered it {rescue.after_kill:.1f} s later."
    )
    screen.line(
        f"  Scaled     cold start {scaled.first:.1f} s; {scaled.answered} of {scaled.answered} answered by "
        f"{scaled.instances} instances on {scaled.clusters} clusters; none {scaled.to_zero:.1f} s later."
    )
    screen.line(f"  Stopped    {stopped}.")
    screen.line(f"[green]✓[/green] All done in {seconds:.0f} s.")


def _put_away(screen: Screen, folder: Path, *, keep: bool) -> None:
    if keep:
        screen.plain(f"Data and logs are kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
