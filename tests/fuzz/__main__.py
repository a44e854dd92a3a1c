"""Run the long form: `python -m tests.fuzz [--inputs N] [--seconds S] [--seed N] [--listener NAME]`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.listeners import LISTENERS, attack
from tests.fuzz.parsers import PARSERS, fuzz
from tests.fuzz.target import running_target

INPUTS = 100_000
SECONDS = 900.0


def say(text: str) -> None:
    """Print a line of the report."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def fuzz_parsers(inputs: int, seed: int) -> int:
    """Fuzz all parsers. Returns the number of crashes."""
    crashes = 0
    for parser in PARSERS:
        began = time.monotonic()
        found = fuzz(parser, inputs, seed)
        crashes += len(found)
        say(f"{parser.name:32} {inputs:8} inputs  {len(found)} crashes  {time.monotonic() - began:6.1f} s")
        for crash in found:
            say(f"    {crash.error}\n    {crash.data[:300]!r}")
    return crashes


async def fuzz_listeners(listeners: list[str], inputs: int, seconds: float, seed: int) -> int:
    """Fuzz the named listeners. Returns the number of faults."""
    faults = 0
    with tempfile.TemporaryDirectory() as directory:
        async with running_target(Path(directory), seed) as target:
            for listener in listeners:
                began = time.monotonic()
                report = await attack(target, listener, inputs, seconds)
                faults += len(report.faults)
                took = time.monotonic() - began
                say(f"{listener:32} {report.sent:8} inputs  {len(report.faults)} faults   {took:6.1f} s")
                for fault in report.faults[:10]:
                    say(f"    {fault}")
    return faults


def main() -> int:
    """Return exit code 1 if there was a crash or a fault."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--inputs", type=int, default=INPUTS, help="number at each parser and listener")
    options.add_argument("--seconds", type=float, default=SECONDS, help="time limit at each listener")
    options.add_argument(
        "--listener", action="append", choices=[*LISTENERS, "parsers"], help="only this one (repeatable)"
    )
    options.add_argument("--seed", type=int, default=int(time.time()))
    chosen = options.parse_args()
    say(f"seed {chosen.seed}")
    wanted = chosen.listener or ["parsers", *LISTENERS]
    crashes = fuzz_parsers(chosen.inputs, chosen.seed) if "parsers" in wanted else 0
    named = [name for name in wanted if name in LISTENERS]
    faults = asyncio.run(fuzz_listeners(named, chosen.inputs, chosen.seconds, chosen.seed)) if named else 0
    say(f"{crashes} crashes, {faults} faults")
    return 1 if crashes or faults else 0


if __name__ == "__main__":
    sys.exit(main())
