"""`python -m tests.fuzz [--inputs N] [--seconds S] [--seed N]`: the long form, with its counts."""

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
SECONDS = 20.0


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


async def fuzz_listeners(seconds: float, seed: int) -> int:
    """All doors; the number of faults."""
    faults = 0
    with tempfile.TemporaryDirectory() as directory:
        async with scene(Path(directory), seed) as found:
            for door in DOORS:
                report = await attack(found, door, seconds)
                faults += len(report.faults)
                say(f"{door:32} {report.sent:8} inputs  {len(report.faults)} faults   {seconds:6.1f} s")
                for fault in report.faults[:10]:
                    say(f"    {fault}")
    return faults


def main() -> int:
    """Exit code 1 when anything was found."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--inputs", type=int, default=INPUTS, help="at each parser")
    options.add_argument("--seconds", type=float, default=SECONDS, help="at each listener")
    options.add_argument("--seed", type=int, default=int(time.time()))
    chosen = options.parse_args()
    say(f"seed {chosen.seed}")
    crashes = fuzz_parsers(chosen.inputs, chosen.seed)
    faults = asyncio.run(fuzz_listeners(chosen.seconds, chosen.seed))
    say(f"{crashes} crashes, {faults} faults")
    return 1 if crashes or faults else 0


if __name__ == "__main__":
    sys.exit(main())
