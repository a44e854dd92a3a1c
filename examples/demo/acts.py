"""The parts of the demo that show pictures and streams."""

from __future__ import annotations

import time
from dataclasses import dataclass

from examples.demo.caller import Caller, parse_json
from examples.demo.failure import DemoFailure
from examples.demo.reading import Reading, Score, make_reading, median, score
from examples.demo.screen import Screen
from examples.ocr.images import Sample
from rich import box
from rich.markup import escape
from rich.table import Table

PACE = 0.12
TEXT = (
    "Each word of this sentence left the function the moment it was ready, "
    "and reached you through the gateway before the next one was thought of."
)


@dataclass(frozen=True, slots=True)
class Function:
    """A deployed function."""

    name: str
    id: str
    version_id: str


async def read_pictures(
    screen: Screen, caller: Caller, function: Function, samples: list[Sample]
) -> tuple[list[Reading], Score]:
    """Send every picture and show the results. Raises `DemoFailure` if too many are misread."""
    readings: list[Reading] = []
    async with screen.step("reading pictures") as step:
        for number, sample in enumerate(samples, 1):
            step.note = f"{number} of {len(samples)}, {sample.scene.name}"
            answer = await caller.invoke(function.id, sample.data, {"content-type": sample.content_type})
            readings.append(make_reading(sample, answer.json(), answer.seconds))
        result = score(readings)
        step.result = str(result)
    screen.console.print(readings_table(readings))
    instances = {reading.instance for reading in readings}
    trips = [reading.round_trip_ms for reading in readings]
    models = [reading.model_ms for reading in readings]
    screen.line(
        f"  Median round trip {median(trips):.0f} ms, of which {median(models):.0f} ms are the model; "
        f"answered by {len(instances)} instance{'s' * (len(instances) != 1)}."
    )
    if not result.acceptable:
        raise DemoFailure(f"far too few pictures were read rightly ({result})")
    return readings, result


def readings_table(readings: list[Reading]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("picture", no_wrap=True)
    table.add_column("truth", overflow="fold")
    table.add_column("recognised", overflow="fold")
    for title in ("alike", "round trip", "model"):
        table.add_column(title, justify="right", no_wrap=True)
    for reading in readings:
        colour = "green" if reading.similarity == 1 else "yellow" if reading.similarity >= 0.9 else "red"
        table.add_row(
            escape(reading.name),
            escape(reading.truth),
            escape(reading.recognised) or "[dim](nothing found)[/dim]",
            f"[{colour}]{reading.similarity:.0%}[/{colour}]",
            f"{reading.round_trip_ms:.0f} ms",
            f"{reading.model_ms:.0f} ms",
        )
    return table


@dataclass(frozen=True, slots=True)
class Streamed:
    tokens: int
    seconds: float


async def show_stream(screen: Screen, caller: Caller, function: Function) -> Streamed:
    """Print each event when it arrives, with the time since the previous one."""
    screen.line(f"  {PACE * 1000:.0f} ms between two words in the function. As they arrive here:")
    started = previous = time.perf_counter()
    words: list[str] = []
    gaps: list[float] = []
    finished = False
    async for event in caller.events(function.id, {"text": TEXT, "pace": PACE}):
        now = time.perf_counter()
        fields = parse_json(event.data)
        if event.name == "token":
            gap = (now - previous) * 1000
            gaps.append(gap)
            words.append(fields.get("token", ""))
            bar = "■" * min(40, round(gap / 10))
            screen.line(
                f"  {len(words):3}  +{gap:4.0f} ms  {escape(fields['token'].strip()):12} [cyan]{bar}[/cyan]"
            )
        finished = finished or event.name == "done"
        previous = now
    seconds = time.perf_counter() - started
    if "".join(words) != TEXT or not finished:
        raise DemoFailure(f"the stream ended early, after {len(words)} words")
    live = sum(gap >= PACE * 500 for gap in gaps[1:])
    screen.line(
        f"[green]✓[/green] {len(words)} words and a final event in {seconds:.1f} s, "
        f"median gap {median(gaps[1:]):.0f} ms."
    )
    # Words that were held back would arrive together at the end, and a busy machine delays a few.
    if live < 0.7 * len(gaps[1:]):
        raise DemoFailure(
            f"only {live} of {len(gaps) - 1} words arrived by themselves: something buffers the stream"
        )
    return Streamed(len(words), seconds)
