"""`python -m tests.fuzz [--inputs N] [--seconds S] [--seed N] [--door NAME]`: the long form."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.listeners import DOORS, attack
from tests.fuzz.parsers import PARSERS, fuzz
from tests.fuzz.scene import scene

INPUTS = 100_000
SECONDS = 900.0


def say(text: str) -> None:
    """A line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fuzz_parsers(inputs: int, seed: int) -> int:
    """All parsers; the number of crashes."""
    crashes = 0
    for parser in PARSERS:
        began = time.monotonic()
        found = fuzz(parser, inputs, seed)
        crashes += len(found)
        say(f"{parser.name:32} {inputs:8} inputs  {len(found)} crashes  {time.monotonic() - began:6.1f} s")
        for crash in found:
            say(f"    {crash.error}\n    {crash.data[:300]!r}")
    return crashes


async def fuzz_listeners(doors: list[str], inputs: int, seconds: float, seed: int) -> int:
    """The doors named; the number of faults."""
    faults = 0
    with tempfile.TemporaryDirectory() as directory:
        async with scene(Path(directory), seed) as found:
            for door in doors:
                began = time.monotonic()
                report = await attack(found, door, inputs, seconds)
                faults += len(report.faults)
                took = time.monotonic() - began
                say(f"{door:32} {report.sent:8} inputs  {len(report.faults)} faults   {took:6.1f} s")
                for fault in report.faults[:10]:
                    say(f"    {fault}")
    return faults


def main() -> int:
    """Exit code 1 when anything was found."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--inputs", type=int, default=INPUTS, help="at each parser and listener")
    options.add_argument("--seconds", type=float, default=SECONDS, help="at most, at each listener")
    options.add_argument(
        "--door", action="append", choices=[*DOORS, "parsers"], help="only this one (may be given often)"
    )
    options.add_argument("--seed", type=int, default=int(time.time()))
    chosen = options.parse_args()
    say(f"seed {chosen.seed}")
    wanted = chosen.door or ["parsers", *DOORS]
    crashes = fuzz_parsers(chosen.inputs, chosen.seed) if "parsers" in wanted else 0
    doors = [door for door in wanted if door in DOORS]
    faults = asyncio.run(fuzz_listeners(doors, chosen.inputs, chosen.seconds, chosen.seed)) if doors else 0
    say(f"{crashes} crashes, {faults} faults")
    return 1 if crashes or faults else 0


if __name__ == "__main__":
    sys.exit(main())
