"""Run the demo on a real platform: `python -m examples.demo` in the project's folder."""

from __future__ import annotations

import argparse
import asyncio
import sys


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the data folder with all logs")
    options = parser.parse_args()
    if sys.platform != "linux":
        print("The demo needs Linux: it looks into /proc to show that no process is left.", file=sys.stderr)
        return 1
    try:
        from examples.demo.run import run
        from examples.demo.screen import Screen
    except ModuleNotFoundError as error:
        print(f"The demo cannot start: {error}. Use `make demo`.", file=sys.stderr)
        return 1
    try:
        return asyncio.run(run(Screen(), keep=options.keep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        # A second signal while everything was being stopped: the kernel ends the platform with this process.
        return 130


if __name__ == "__main__":
    sys.exit(main())
