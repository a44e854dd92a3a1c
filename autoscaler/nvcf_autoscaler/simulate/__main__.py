"""`nvcf-simulate`: replay traces against scaling policies and compare them."""

from __future__ import annotations

import argparse
import csv
import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from nvcf_autoscaler.errors import AutoscalerError, InvalidTrace
from nvcf_autoscaler.simulate.arrivals import HOUR
from nvcf_autoscaler.simulate.compare import ALL, Comparison, compare
from nvcf_autoscaler.simulate.families import FAMILIES, HELD_OUT, TUNED, make_day, make_function
from nvcf_autoscaler.simulate.model import SimulatedFunction, SimulatedSpecification, StartupTimes
from nvcf_autoscaler.simulate.platform import add_commands, run
from nvcf_autoscaler.simulate.plot import draw
from nvcf_autoscaler.simulate.production import PRODUCTION
from nvcf_autoscaler.simulate.report import by_function, table
from nvcf_autoscaler.simulate.trace import read_csv, write_csv
from nvcf_broker.errors import BrokerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. A wrong option or trace is one line on stderr and code 2."""
    options = _parser().parse_args(arguments)
    # Reference counting frees everything here. The collector would only cost time.
    gc.disable()
    try:
        if options.command in ("record", "advise"):
            return run(options)
        began = time.process_time()
        sets = [(title, [_delayed(each, options) for each in found]) for title, found in _functions(options)]
        made = time.process_time()
        names = tuple(options.policies.split(","))
        gpus = _capacity(options.capacity)
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
        for title, functions in sets:
            found = compare(
                title,
                functions,
                names,
                options.seed,
                gpus,
                trace=options.output is not None,
                limits=not options.no_oracle,
                price=options.price,
            )
            _show(found)
            if options.output:
                _save(found, options.output)
        ended = time.process_time()
        sys.stderr.write(
            f"CPU time: traces made in {made - began:.1f} s, simulated in {ended - made:.1f} s\n"
        )
    except (AutoscalerError, BrokerError, OSError) as error:
        sys.stderr.write(f"nvcf-simulate: {error}\n")
        return 2
    finally:
        gc.enable()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nvcf-simulate", description="Replay arrival traces against scaling policies and compare them."
    )
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--policies", default=",".join(ALL), help="ours, ours:PROFILE, nvcf, kpa, keda, fixed, fixed:N")
    add("--seed", type=int, default=1, help="of traces and start-up times")
    add("--slo", type=float, default=5.0, metavar="SECONDS", help="within which a request should start")
    add("--capacity", default="", metavar="ID=GPUS", help="GPUs that all functions share (comma list)")
    add("--output", type=Path, metavar="DIR", help="write numbers (JSON, CSV by function) and pictures there")
    add("--price", type=float, default=0.0, metavar="MONEY", help="of one GPU-hour: adds what it costs")
    add(
        "--pull", type=float, default=0.0, metavar="SECONDS", help="start-up beyond the most instances so far"
    )
    add("--provision", type=float, default=0.0, metavar="SECONDS", help="longer start without a node")
    add("--nodes", type=int, default=1, help="instances of a function for which there are nodes")
    add("--no-oracle", action="store_true", help="leave out the oracle, which takes a while")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "CSV traces: time,duration[,tokens][,function]"
    add = commands.add_parser("replay", parents=[shared], help=text).add_argument
    add("traces", type=Path, nargs="+")
    add("--concurrency", type=int, default=1, help="requests an instance serves at a time")
    add("--min", type=int, default=0, help="instances of each function, at least")
    add("--max", type=int, default=16, help="instances of each function, at most")
    add("--gpus", type=int, default=1, help="GPUs an instance takes")
    add("--startup", type=float, default=30.0, metavar="SECONDS", help="median start-up time")
    add("--startup-sigma", type=float, default=0.25, help="spread of its logarithm; 0: constant")
    add("--seconds-per-token", type=float, help="service time of rows that only have tokens")
    add("--callers", type=int, default=0, help="callers that wait for each answer; 0: all come as recorded")
    add("--horizon", type=float, metavar="SECONDS", help="end of the trace (default: last arrival)")
    add = commands.add_parser("families", parents=[shared], help="synthetic traces").add_argument
    text = "tuned, held-out, production, all or a comma list of " + ", ".join(FAMILIES)
    add("--families", default="tuned", help=text)
    add("--functions", type=int, default=6, help="of each family")
    add("--hours", type=float, default=6.0)
    add("--write", type=Path, metavar="FILE", help="also write the traces as CSV")
    text = "many functions of very different popularity"
    add = commands.add_parser("day", parents=[shared], help=text).add_argument
    add("--functions", type=int, default=1000)
    add("--hours", type=float, default=24.0)
    add_commands(commands)
    return parser


def _functions(options: argparse.Namespace) -> list[tuple[str, list[SimulatedFunction]]]:
    if min(options.price, options.pull, options.provision, options.nodes) < 0:
        raise InvalidTrace("--price, --pull, --provision and --nodes must be at least 0")
    if options.command == "replay":
        return [_replayed(options)]
    if options.functions < 1 or options.hours <= 0 or options.slo <= 0:
        raise InvalidTrace("--functions, --hours and --slo must be above 0")
    if options.command == "day":
        day = make_day(options.functions, options.seed, options.hours * HOUR)
        return [(f"a day of {options.functions} functions", day)]
    chosen = {"tuned": list(TUNED), "held-out": list(HELD_OUT), "production": list(PRODUCTION)}
    chosen["all"] = list(FAMILIES)
    names = chosen.get(options.families, options.families.split(","))
    horizon, numbers = options.hours * HOUR, range(options.functions)
    sets = [
        (name, [make_function(name, options.seed, index, horizon, options.slo) for index in numbers])
        for name in names
    ]
    everything = [function for _, functions in sets for function in functions]
    if options.write:
        write_csv(options.write, everything)
    return sets if len(sets) == 1 else [*sets, (f"all of {', '.join(names)}", everything)]


def _replayed(options: argparse.Namespace) -> tuple[str, list[SimulatedFunction]]:
    if options.concurrency < 1 or options.gpus < 1 or not 0 <= options.min <= options.max or options.max < 1:
        raise InvalidTrace(
            "--concurrency, --gpus and --max must be at least 1, and --min between 0 and --max"
        )
    if options.callers < 0:
        raise InvalidTrace("--callers must be at least 0")
    if options.startup <= 0 or options.startup_sigma < 0 or options.slo <= 0:
        raise InvalidTrace("--startup and --slo must be above 0 and --startup-sigma at least 0")
    startup = StartupTimes(options.startup, options.startup_sigma)
    spec = SimulatedSpecification("gpu", options.max, options.min, options.concurrency, options.gpus, startup)
    functions: list[SimulatedFunction] = []
    for path in options.traces:
        functions += read_csv(
            path,
            (spec,),
            wait_slo=options.slo,
            horizon=options.horizon,
            seconds_per_token=options.seconds_per_token,
        )
    closed = [replace(each, callers=options.callers) for each in functions]
    return ", ".join(path.name for path in options.traces), closed


def _delayed(function: SimulatedFunction, options: argparse.Namespace) -> SimulatedFunction:
    """Return the function with the delays of images and nodes."""
    if not options.pull and not options.provision:
        return function
    delays = {"pull": options.pull, "provision": options.provision, "nodes": options.nodes}
    specs = [replace(each, startup=replace(each.startup, **delays)) for each in function.specifications]
    return replace(function, specifications=tuple(specs))


def _capacity(text: str) -> dict[str, int] | None:
    if not text:
        return None
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if not name or not number.isdecimal():
            raise InvalidTrace(f"--capacity: {part!r} is not ID=GPUS")
        found[name] = int(number)
    return found


def _show(found: Comparison) -> None:
    requests = sum(len(function.arrivals) for function in found.functions)
    lines = [f"{found.title}: {len(found.functions)} functions, {requests} requests"]
    lines.append(table(found.summaries(), found.limit))
    if found.limit_equal:
        share = sum(result.gpu_seconds for result in found.results["ours"]) / found.limit_equal
        lines.append(f"ours takes {share:.2f} times the oracle's GPU time at equal attainment")
    sys.stdout.write("\n".join(lines) + "\n\n")


def _save(found: Comparison, folder: Path) -> None:
    name = "".join(letter if letter.isalnum() else "-" for letter in found.title)[:60]
    rows = by_function(found.functions, found.results, found.price)
    numbers = {
        "title": found.title,
        "oracleGpuSeconds": found.limit,
        "oracleGpuSecondsAtEqualAttainment": found.limit_equal,
        "policies": [asdict(one) for one in found.summaries()],
        "functions": rows,
    }
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (folder / f"{name}.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    draw(found, folder / f"{name}.png")


if __name__ == "__main__":
    raise SystemExit(main())
