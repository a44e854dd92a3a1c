"""`nvcf top`: functions, queues, latencies and scaling decisions, live in the terminal."""

import asyncio
import sys
from typing import Annotated

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api, ApiProblem
from nvcf_cli.catalog import require_function
from nvcf_cli.clusters import name_of, pools_text
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.screen import age, cell, console, print_json, shortened, visible
from nvcf_cli.snapshot import (
    Row,
    Snapshot,
    decision_text,
    rate_text,
    seconds_text,
    share_text,
    snapshot,
    sparkline,
)

# Running, starting, ending: `3 +12 -2`.
_STATES = (
    ("", ("RUNNING",), "green"),
    ("+", ("STARTING", "PENDING"), "yellow"),
    ("-", ("TERMINATING",), "dim"),
)
_STATUS = {
    "ACTIVE": "green",
    "DEPLOYING": "yellow",
    "DEGRADING": "yellow",
    "DEGRADED": "bold red",
    "ERROR": "bold red",
}
_NUMBERS = ("QUEUED", "WORK", "OLDEST", "/S", "FAIL", "P50", "P99")
_ONLY_WIDE = ("OLDEST", "P50")
# Below this width some columns are left out. What the columns beside the name take, with their margins:
_WIDE = 120
_OTHERS_WIDE = 92
_OTHERS_NARROW = 58
_DECISIONS = 100
_LONGEST_WAIT = 15.0


def top(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only of this function.", show_default=False)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval", "-i", min=0.5, max=3600, metavar="SECONDS", help="Time between two refreshes."
        ),
    ] = 2.0,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch functions, instances, queues, latencies and scaling decisions. Ctrl-c ends it.

    Rates and percentiles are those of the last minute. Instances are those that run, start (+) and end (-).
    With --json each picture is one line; with --once too it is one indented document.

    \b
    Examples:
      nvcf top
      nvcf top hello --interval 5
      nvcf top --once --json
    """
    if not once and not as_json and not sys.stdout.isatty():
        raise UsageError("this is no terminal: use nvcf top --once, or --json for a picture a line")

    async def work(api: Api) -> None:
        if once:
            now = await fetch_snapshot(api, name)
            if as_json:
                print_json(now.to_dict())
            else:
                out = console()
                out.print(render(now, width=out.width))
        elif as_json:
            await _lines(api, name, interval)
        else:
            await _watch(api, name, interval)

    Access(data, url, key_file).run(work)


async def fetch_snapshot(api: Api, name: str | None = None) -> Snapshot:
    """Fetch what there is to show. Raises `CliError`."""
    functions = await api.functions()
    versions = None
    if name is not None:
        versions = frozenset(str(each["versionId"]) for each in require_function(functions, name).versions)
    metrics, instances, clusters, events = await asyncio.gather(
        api.call("GET", "/v2/nvcf/figures"),
        api.instances(),
        api.clusters(),
        api.events(kind="scaling", limit=_DECISIONS),
    )
    return snapshot(metrics, functions, instances, clusters, events, versions)


async def _lines(api: Api, name: str | None, interval: float) -> None:
    while True:
        now = await fetch_snapshot(api, name)
        print_json(now.to_dict(), indent=None)
        sys.stdout.flush()
        await asyncio.sleep(interval)


async def _watch(api: Api, name: str | None, interval: float) -> None:
    shown = await fetch_snapshot(api, name)
    failures = 0
    with Live(console=console(), screen=True, auto_refresh=False) as live:
        while True:
            trouble = None
            try:
                shown, failures = await fetch_snapshot(api, name), 0
            except ApiProblem as problem:
                if problem.status in (401, 403):
                    raise
                trouble, failures = str(problem), failures + 1
            except CliError as error:
                trouble, failures = str(error), failures + 1
            wait = min(_LONGEST_WAIT, interval * 2**failures) if failures else interval
            live.update(
                render(shown, trouble, width=live.console.width, height=live.console.height), refresh=True
            )
            await asyncio.sleep(wait)


def render(
    now: Snapshot, trouble: str | None = None, *, width: int = _WIDE, height: int | None = None
) -> RenderableType:
    """Return a snapshot for a terminal of that size; `trouble` is why it is not of this moment."""
    parts: list[RenderableType] = [_headline(now)]
    if trouble is not None:
        parts.append(Text(f"not live, this is from {now.at}: {trouble}", style="bold red"))
    answered, known = now.gateways
    if answered < known:
        parts.append(
            Text(f"{known - answered} of {known} gateways did not answer: rates are too low", "yellow")
        )
    parts += [Text(""), _functions(now.rows, width)]
    taken = len(parts) + max(1, len(now.rows)) + 5
    room = None if height is None else max(3, height - taken)
    parts += [Text(""), _decisions(now, room, width)]
    return Group(*parts)


def _headline(now: Snapshot) -> Text:
    states = now.instances
    text = Text()
    text.append(f"{rate_text(now.total('answers'))}/s answered", "bold")
    text.append(f"  {rate_text(now.total('arrivals'))}/s arriving  ")
    failures = now.total("failures")
    text.append(f"{rate_text(failures)}/s failing", "bold red" if failures else "")
    text.append(f"  {now.total('waiting'):.0f} waiting, {now.total('queued'):.0f} queued")
    running, starting = states["RUNNING"], states["STARTING"] + states["PENDING"]
    text.append(f"  {running} running" + (f", {starting} starting" if starting else ""), "green")
    free = "; ".join(f"{name_of(each)} {pools_text(each)}" for each in now.clusters)
    text.append(f"\nfree: {free or 'no cluster has reported'}", "dim")
    if now.answered:
        line = sparkline(now.answered, 60)
        text.append(f"\n{line}", "green")
        text.append(f" answers in {seconds_text(len(line) * now.step_seconds)}", "dim")
    return text


def _functions(rows: tuple[Row, ...], width: int) -> RenderableType:
    if not rows:
        return Text("nothing is deployed: nvcf deploy function.py", style="dim")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    wide = width >= _WIDE
    room = max(8, width - (_OTHERS_WIDE if wide else _OTHERS_NARROW))
    table.add_column("FUNCTION", no_wrap=True)
    if wide:
        table.add_column("STATUS", no_wrap=True)
    table.add_column("INSTANCES", no_wrap=True)
    numbers = [name for name in _NUMBERS if wide or name not in _ONLY_WIDE]
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        values = _numbers(row)
        style = _STATUS.get(row.status, "")
        table.add_row(
            # Where no column has the status, the colour of the name tells it.
            Text(shortened(visible(row.function), room), "" if wide else style),
            *([Text(row.status.lower(), style)] if wide else []),
            _states(row.instances),
            *(values[title] for title in numbers),
        )
    return table


def _numbers(row: Row) -> dict[str, Text]:
    failing = share_text(row.failures, max(row.answers, row.failures))
    texts = (
        "-" if row.queued is None else str(row.queued),
        "-" if row.in_flight is None else str(row.in_flight),
        seconds_text(row.oldest),
        rate_text(row.answers),
        failing,
        seconds_text(row.p50),
        seconds_text(row.p99),
    )
    return {
        title: Text(text, "red" if title == "FAIL" and row.failures else "")
        for title, text in zip(_NUMBERS, texts, strict=True)
    }


def _states(instances: dict[str, int]) -> Text:
    text = Text()
    for sign, states, style in _STATES:
        if count := sum(instances.get(state, 0) for state in states):
            text.append(f" {sign}{count}" if text else f"{sign}{count}", style)
    return text if text else Text("none", "dim")


def _decisions(now: Snapshot, room: int | None, width: int) -> RenderableType:
    if not now.decisions:
        return Text("nothing has been decided yet", style="dim")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("AGO", no_wrap=True, justify="right", min_width=4)
    table.add_column("FUNCTION", no_wrap=True, min_width=8)
    table.add_column("CHANGE", no_wrap=True, justify="right", min_width=7)
    table.add_column("WHY", overflow="fold")
    for each in now.decisions[: 10 if room is None else room]:
        wanted, why = decision_text(each)
        change = f"{cell(each.get('data') or {}, 'up')} → {wanted}" if wanted else ""
        table.add_row(
            age(each.get("at")), shortened(cell(each, "functionName"), width // 4), change, Text(visible(why))
        )
    return table
